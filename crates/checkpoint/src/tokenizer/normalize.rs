//! What SentencePiece does to a text before it looks for pieces.

use std::borrow::Cow;

use super::charsmap::Charsmap;

/// SentencePiece's visible space, U+2581.
pub(super) const SPACE: &str = "\u{2581}";

/// SentencePiece's normaliser; the default leaves text as it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Normalizer {
    pub(super) charsmap: Option<Charsmap>,
    /// Trims spaces at both ends and collapses runs of them.
    pub(super) collapse_spaces: bool,
    /// Puts a space in front of every text that is not empty.
    pub(super) space_prefix: bool,
    /// Writes each space as U+2581.
    pub(super) visible_spaces: bool,
}

impl Normalizer {
    /// The rewritten text.
    pub(super) fn normalize<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        if let Some(charsmap) = &self.charsmap {
            text = charsmap.apply(&text).into();
        }
        if self.collapse_spaces {
            text = collapse_spaces(&text).into();
        }
        if self.space_prefix && !text.is_empty() {
            text = format!(" {text}").into();
        }
        if self.visible_spaces {
            text = text.replace(' ', SPACE).into();
        }
        text
    }
}

fn collapse_spaces(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces() {
        let llama = Normalizer { space_prefix: true, visible_spaces: true, ..Normalizer::default() };
        assert_eq!(llama.normalize(" a  b"), "▁▁a▁▁b");
        assert_eq!(llama.normalize(""), "");
        let t5 = Normalizer { collapse_spaces: true, ..llama };
        assert_eq!(t5.normalize("  a  b "), "▁a▁b");
        assert_eq!(t5.normalize("   "), "");
    }
}
