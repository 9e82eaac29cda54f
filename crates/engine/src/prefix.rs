//! Which pages hold the keys and values of which beginning of a prompt.

use std::{collections::BTreeMap, sync::Arc};

use crate::{PageId, TokenId};

/// Whole pages by the tokens that they hold and all tokens before them.
///
/// A page is known by the page before it and its own tokens, compared and not hashed, so that no other tokens can pass for
/// them. The first page of a chain is known by a salt, of which requests share nothing with those of another.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    pages: BTreeMap<Key, PageId>,
    /// What is known of each page.
    entries: BTreeMap<PageId, Entry>,
    /// Pages that no table shares, by when they were last used.
    unused: BTreeMap<u64, PageId>,
    /// Counts up; numbers are never used twice.
    clock: u64,
}

/// What comes before a page.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Before {
    Start(Arc<str>),
    /// The number of an entry.
    Entry(u64),
}

type Key = (Before, Box<[TokenId]>);

#[derive(Debug)]
struct Entry {
    /// Never that of another entry, also when this is gone.
    number: u64,
    key: Key,
    /// Its place in `unused`, if no table shares it.
    unused_since: Option<u64>,
}

impl PrefixCache {
    /// The pages of the longest beginning of `tokens` that is known, at most `most` of them.
    pub(crate) fn find(
        &self,
        salt: &Arc<str>,
        tokens: &[TokenId],
        page_size: usize,
        most: usize,
    ) -> Vec<PageId> {
        let mut before = Before::Start(salt.clone());
        let mut found = Vec::new();
        for tokens in tokens.chunks_exact(page_size).take(most) {
            let key = (before, tokens.into());
            let Some(&page) = self.pages.get(&key) else { break };
            before = Before::Entry(self.entries[&page].number);
            found.push(page);
        }
        found
    }

    /// Makes `page` known by its tokens and the page before it, `None` for the first. Returns the page that is known by
    /// them already, if it is another; nothing is changed then. Nor is it if the page before is not known.
    pub(crate) fn insert(
        &mut self,
        salt: &Arc<str>,
        before: Option<PageId>,
        tokens: &[TokenId],
        page: PageId,
    ) -> Option<PageId> {
        let before = match before {
            None => Before::Start(salt.clone()),
            Some(before) => Before::Entry(self.entries.get(&before)?.number),
        };
        let key: Key = (before, tokens.into());
        if let Some(&known) = self.pages.get(&key) {
            return Some(known).filter(|&known| known != page);
        }
        let number = self.tick();
        self.pages.insert(key.clone(), page);
        self.entries.insert(page, Entry { number, key, unused_since: None });
        None
    }

    /// Pages that no table shares.
    pub(crate) fn unused(&self) -> usize {
        self.unused.len()
    }

    /// Those pages.
    pub(crate) fn unused_pages(&self) -> impl Iterator<Item = &PageId> {
        self.unused.values()
    }

    /// Whether a page is known and no table shares it.
    pub(crate) fn is_unused(&self, page: PageId) -> bool {
        self.entries.get(&page).is_some_and(|entry| entry.unused_since.is_some())
    }

    /// A table shares the page again.
    pub(crate) fn take(&mut self, page: PageId) {
        if let Some(since) = self.entries.get_mut(&page).and_then(|entry| entry.unused_since.take()) {
            self.unused.remove(&since);
        }
    }

    /// No table shares the page any more. Returns whether it is kept, since it is known.
    pub(crate) fn keep(&mut self, page: PageId) -> bool {
        let now = self.tick();
        let Some(entry) = self.entries.get_mut(&page) else { return false };
        entry.unused_since = Some(now);
        self.unused.insert(now, page);
        true
    }

    /// Forgets the page that nobody has used for longest, and returns it.
    pub(crate) fn evict(&mut self) -> Option<PageId> {
        let (_, page) = self.unused.pop_first()?;
        if let Some(entry) = self.entries.remove(&page) {
            self.pages.remove(&entry.key);
        }
        Some(page)
    }

    /// Forgets everything, and returns the pages that no table shares.
    pub(crate) fn clear(&mut self) -> Vec<PageId> {
        self.pages.clear();
        self.entries.clear();
        std::mem::take(&mut self.unused).into_values().collect()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 2;

    fn salt(text: &str) -> Arc<str> {
        text.into()
    }

    /// A chain of pages over whole pages of tokens.
    fn insert(cache: &mut PrefixCache, name: &str, tokens: &[TokenId], pages: &[u32]) {
        let mut before = None;
        for (tokens, &page) in tokens.chunks(SIZE).zip(pages) {
            assert_eq!(cache.insert(&salt(name), before, tokens, PageId(page)), None);
            before = Some(PageId(page));
        }
    }

    fn find(cache: &PrefixCache, name: &str, tokens: &[TokenId], most: usize) -> Vec<u32> {
        cache.find(&salt(name), tokens, SIZE, most).into_iter().map(|page| page.0).collect()
    }

    #[test]
    fn the_longest_known_beginning_is_found() {
        let mut cache = PrefixCache::default();
        insert(&mut cache, "", &[1, 2, 3, 4, 5, 6], &[7, 8, 9]);
        assert_eq!(find(&cache, "", &[1, 2, 3, 4, 9, 9], 9), [7, 8]);
        assert_eq!(find(&cache, "", &[1, 2, 3, 4, 5], 9), [7, 8], "half a page is none");
        assert_eq!(find(&cache, "", &[1, 2, 3, 4, 5, 6, 7], 1), [7]);
        assert_eq!(find(&cache, "", &[3, 4], 9), [], "in another place");
        assert_eq!(find(&cache, "other", &[1, 2], 9), [], "under another salt");
    }

    #[test]
    fn the_same_tokens_are_of_one_page() {
        let mut cache = PrefixCache::default();
        insert(&mut cache, "", &[1, 2], &[7]);
        assert_eq!(cache.insert(&salt(""), None, &[1, 2], PageId(8)), Some(PageId(7)));
        assert_eq!(cache.insert(&salt(""), None, &[1, 2], PageId(7)), None);
        assert_eq!(
            cache.insert(&salt(""), Some(PageId(5)), &[3, 4], PageId(9)),
            None,
            "after an unknown page"
        );
        assert!(!cache.keep(PageId(9)));
    }

    #[test]
    fn the_least_recently_used_goes_first_and_takes_nobody_along() {
        let mut cache = PrefixCache::default();
        insert(&mut cache, "", &[1, 2, 3, 4], &[7, 8]);
        insert(&mut cache, "", &[5, 6], &[9]);
        for page in [7, 8, 9, 7] {
            cache.take(PageId(page));
            assert!(cache.keep(PageId(page)));
        }
        assert_eq!((cache.unused(), cache.evict()), (3, Some(PageId(8))));
        cache.take(PageId(9));
        assert_eq!((cache.evict(), cache.evict()), (Some(PageId(7)), None));
        // What came after a page that is gone is not found, also when the page is known again.
        insert(&mut cache, "", &[1, 2], &[8]);
        assert_eq!(find(&cache, "", &[1, 2, 3, 4], 9), [8]);
        assert_eq!(cache.clear(), []);
        assert_eq!(find(&cache, "", &[5, 6], 9), []);
    }
}
