//! Stop strings, matched across token borders.

/// Holds text back while it could still be the beginning of a stop string.
///
/// The stop string that is complete first wins; of those complete at the same character, the longest. The outcome does
/// not depend on how the text was cut into deltas.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// A matcher of `stops`, none of them empty.
    pub fn new(stops: Vec<String>) -> Self {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()));
        Self { stops, held: String::new() }
    }

    /// Takes the next text. Returns what may be given out and, once a stop string is complete, its index; its own text
    /// and all after it are dropped.
    pub fn push(&mut self, delta: &str) -> (String, Option<usize>) {
        if self.stops.is_empty() {
            return (delta.to_owned(), None);
        }
        self.held.push_str(delta);
        if let Some((start, index)) = self.first_match() {
            self.held.truncate(start);
            return (std::mem::take(&mut self.held), Some(index));
        }
        let certain = self.held.len() - self.held_back();
        let held = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, held), None)
    }

    /// Ends the text: what was held back is no stop string after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the winning match starts, and which stop string it is.
    fn first_match(&self) -> Option<(usize, usize)> {
        let matches = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, index))
        });
        matches.min().map(|(_, start, index)| (start, index))
    }

    /// The length of the longest end of the text that begins a stop string.
    fn held_back(&self) -> usize {
        let text = self.held.as_bytes();
        let begun = |stop: &String| {
            let stop = stop.as_bytes();
            (1..stop.len().min(text.len() + 1)).rev().find(|&n| text.ends_with(&stop[..n])).unwrap_or(0)
        };
        self.stops.iter().map(begun).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], deltas: &[&str]) -> (Vec<String>, Option<usize>) {
        let mut matcher = StopMatcher::new(stops.iter().map(|s| s.to_string()).collect());
        let mut out = Vec::new();
        for delta in deltas {
            let (text, stopped) = matcher.push(delta);
            out.push(text);
            if stopped.is_some() {
                return (out, stopped);
            }
        }
        out.push(matcher.finish());
        (out, None)
    }

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }

    #[test]
    fn a_match_across_deltas_is_cut_and_its_beginning_never_leaks() {
        assert_eq!(run(&["STOP"], &["abS", "TO", "Pxyz"]), (owned(&["ab", "", ""]), Some(0)));
    }

    #[test]
    fn a_false_beginning_is_released() {
        assert_eq!(run(&["STOP"], &["ST", "AR", "S"]), (owned(&["", "STAR", "", "S"]), None));
    }

    #[test]
    fn a_beginning_inside_a_beginning_is_kept() {
        assert_eq!(run(&["aab"], &["aa", "ab"]), (owned(&["", "a"]), Some(0)));
    }

    #[test]
    fn the_stop_complete_first_wins_and_then_the_longest() {
        assert_eq!(run(&["abcd", "bc"], &["abcd"]), (owned(&["a"]), Some(1)));
        assert_eq!(run(&["c", "bc"], &["abcd"]), (owned(&["a"]), Some(1)));
    }

    #[test]
    fn characters_of_several_bytes_match_whole() {
        assert_eq!(run(&["é!"], &["caf", "é", "!"]), (owned(&["caf", "", ""]), Some(0)));
    }

    fn alphabet(length: std::ops::Range<usize>) -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!['a', 'b', 'é']), length)
            .prop_map(|characters| characters.into_iter().collect())
    }

    /// The definition, without streaming: the shortest beginning of the text that ends in a stop string.
    fn expected(text: &str, stops: &[String]) -> (String, Option<usize>) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let ending = stops.iter().enumerate().filter(|(_, stop)| text[..end].ends_with(stop.as_str()));
            let longest = ending.min_by_key(|(index, stop)| (usize::MAX - stop.len(), *index));
            if let Some((index, stop)) = longest {
                return (text[..end - stop.len()].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_text_before_the_first_stop(
            stops in prop::collection::vec(alphabet(1..5), 0..4),
            deltas in prop::collection::vec(alphabet(0..4), 0..12),
        ) {
            let whole = expected(&deltas.concat(), &stops);
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let deltas: Vec<&str> = deltas.iter().map(String::as_str).collect();
            let (texts, stopped) = run(&stops, &deltas);
            prop_assert_eq!((texts.concat(), stopped), whole);
        }
    }
}
