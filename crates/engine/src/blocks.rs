//! Who owns which page of the key-value cache.

use std::sync::Arc;

use thiserror::Error;

use crate::{TokenId, prefix::PrefixCache};

/// A page of the key-value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u32);

/// The pages of one sequence, in position order: one share in each.
///
/// Made only by a [`BlockManager`] and given back to it by value, so a page cannot be freed twice. Not `Clone`: a second
/// share comes from [`BlockManager::fork`].
#[derive(Debug, Default)]
#[must_use = "give the pages back with BlockManager::free"]
pub struct BlockTable(Vec<PageId>);

impl BlockTable {
    /// The pages, in position order.
    pub fn pages(&self) -> &[PageId] {
        &self.0
    }

    /// How many pages there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it holds no page.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Hands out pages, counts shares in each, and takes them back.
///
/// A page is owned while a table shares it. After that it is cached if it is known by its tokens, and free otherwise; cached pages
/// become free when there are too few others, the least recently used first.
#[derive(Debug)]
pub struct BlockManager {
    shares: Vec<u32>,
    cache: PrefixCache,
    /// Free pages; the last is handed out first, so a small load touches few pages.
    free: Vec<PageId>,
}

impl BlockManager {
    /// A manager of `pages` free pages.
    pub fn new(pages: usize) -> Self {
        Self {
            shares: vec![0; pages],
            cache: PrefixCache::default(),
            free: (0..pages as u32).rev().map(PageId).collect(),
        }
    }

    /// All pages.
    pub fn total(&self) -> usize {
        self.shares.len()
    }

    /// Pages that nobody owns, and that hold nothing of use.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Pages that nobody owns, and that are known by the tokens that they hold.
    pub fn cached_pages(&self) -> usize {
        self.cache.unused()
    }

    /// Pages that somebody owns, each counted once however many share it.
    pub fn owned_pages(&self) -> usize {
        self.total() - self.free.len() - self.cache.unused()
    }

    /// Extends `table` to `pages` pages; takes all or, when too few are free or cached, none and returns false.
    #[must_use]
    pub fn grow(&mut self, table: &mut BlockTable, pages: usize) -> bool {
        let missing = pages.saturating_sub(table.len());
        if missing > self.free.len() + self.cache.unused() {
            return false;
        }
        while self.free.len() < missing {
            self.free.extend(self.cache.evict());
        }
        let taken = self.free.split_off(self.free.len() - missing);
        for &page in taken.iter().rev() {
            self.shares[page.0 as usize] = 1;
            table.0.push(page);
        }
        true
    }

    /// A table of `pages` pages for these tokens, of which the first ones hold the longest beginning that is cached, at most `most`
    /// of them; and how many these are. None when fewer than `reserve` pages would be left that nobody owns.
    pub(crate) fn start(
        &mut self,
        (salt, tokens): (&Arc<str>, &[TokenId]),
        page_size: usize,
        [pages, most, reserve]: [usize; 3],
    ) -> Option<(BlockTable, usize)> {
        let found = self.cache.find(salt, tokens, page_size, most);
        let unused = found.iter().filter(|&&page| self.cache.is_unused(page)).count();
        let left = self.free.len() + self.cache.unused() - unused;
        if left < pages - found.len() + reserve {
            return None;
        }
        for &page in &found {
            self.cache.take(page);
            self.shares[page.0 as usize] += 1;
        }
        let hits = found.len();
        let mut table = BlockTable(found);
        let grown = self.grow(&mut table, pages);
        debug_assert!(grown, "there were enough");
        Some((table, hits))
    }

    /// Makes page `index` of a table known by its tokens, which it holds to the last. Where another page is known by the same
    /// beginning, the table shares that one from now on.
    pub(crate) fn remember(
        &mut self,
        table: &mut BlockTable,
        index: usize,
        salt: &Arc<str>,
        tokens: &[TokenId],
    ) {
        let before = index.checked_sub(1).map(|before| table.0[before]);
        let own = table.0[index];
        if let Some(known) = self.cache.insert(salt, before, tokens, own) {
            self.cache.take(known);
            self.shares[known.0 as usize] += 1;
            table.0[index] = known;
            self.free(BlockTable(vec![own]));
        }
    }

    /// Forgets what pages hold.
    pub(crate) fn forget(&mut self) {
        self.free.extend(self.cache.clear());
    }

    /// A second table over the first `pages` pages of `table`, sharing them. A shared page must not be written: fork
    /// only pages whose every slot is filled. Panics when `table` is shorter.
    pub fn fork(&mut self, table: &BlockTable, pages: usize) -> BlockTable {
        let shared = table.0[..pages].to_vec();
        for page in &shared {
            self.shares[page.0 as usize] += 1;
        }
        BlockTable(shared)
    }

    /// Gives up a table's share in its pages; those with no share left are free or cached at once, the last to be used again first.
    pub fn free(&mut self, table: BlockTable) {
        for page in table.0.into_iter().rev() {
            let shares = &mut self.shares[page.0 as usize];
            *shares -= 1;
            if *shares == 0 && !self.cache.keep(page) {
                self.free.push(page);
            }
        }
    }

    /// Checks that `tables` are all the tables there are, and that every page is either free, or cached, or owned by them.
    ///
    /// # Errors
    /// Names the first page for which this does not hold.
    pub fn check<'a>(&self, tables: impl IntoIterator<Item = &'a BlockTable>) -> Result<(), PageLeak> {
        let mut owners = vec![0u32; self.total()];
        tables.into_iter().flat_map(BlockTable::pages).for_each(|page| owners[page.0 as usize] += 1);
        let mut listed = vec![0u32; self.total()];
        self.free.iter().chain(self.cache.unused_pages()).for_each(|page| listed[page.0 as usize] += 1);
        for (page, (&owners, (&shares, &listed))) in
            owners.iter().zip(self.shares.iter().zip(&listed)).enumerate()
        {
            if owners != shares || listed != u32::from(shares == 0) {
                return Err(PageLeak { page: PageId(page as u32), owners, shares, listed });
            }
        }
        Ok(())
    }
}

/// A page whose owners, share count and place among free and cached pages disagree: a defect in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "page {} has {owners} owners, {shares} shares and is {listed} times free or cached; \
     this is a defect, please report it", page.0
)]
pub struct PageLeak {
    /// The page.
    pub page: PageId,
    /// How many live tables hold it.
    pub owners: u32,
    /// How many shares the manager counts.
    pub shares: u32,
    /// How often it is free or cached.
    pub listed: u32,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn growing_takes_all_or_nothing() {
        let mut blocks = BlockManager::new(3);
        let mut table = BlockTable::default();
        assert!(blocks.grow(&mut table, 2));
        assert_eq!(table.pages(), [PageId(0), PageId(1)]);
        assert!(!blocks.grow(&mut table, 4));
        assert_eq!((table.len(), blocks.free_pages(), blocks.owned_pages()), (2, 1, 2));
        assert!(blocks.grow(&mut table, 1), "a table never shrinks by growing");
        assert_eq!(table.len(), 2);
        blocks.free(table);
        assert_eq!(blocks.free_pages(), 3);
    }

    #[test]
    fn a_shared_page_is_free_when_its_last_share_goes() {
        let mut blocks = BlockManager::new(2);
        let mut parent = BlockTable::default();
        assert!(blocks.grow(&mut parent, 2));
        let child = blocks.fork(&parent, 1);
        blocks.free(parent);
        assert_eq!(blocks.free_pages(), 1);
        blocks.check([&child]).unwrap();
        blocks.free(child);
        assert_eq!(blocks.free_pages(), 2);
        blocks.check([]).unwrap();
    }

    #[test]
    fn a_dropped_table_is_found_as_a_leak() {
        let mut blocks = BlockManager::new(2);
        let mut table = BlockTable::default();
        assert!(blocks.grow(&mut table, 1));
        drop(table);
        let leak = blocks.check([]).unwrap_err();
        assert_eq!((leak.page, leak.owners, leak.shares), (PageId(0), 0, 1));
    }

    proptest! {
        #[test]
        fn free_and_owned_make_the_total(operations in prop::collection::vec((0u8..3, 0usize..8, 0usize..12), 0..200)) {
            let mut blocks = BlockManager::new(16);
            let mut tables: Vec<BlockTable> = Vec::new();
            for (operation, which, amount) in operations {
                match operation {
                    0 => {
                        let mut table = BlockTable::default();
                        let fits = amount <= blocks.free_pages();
                        prop_assert_eq!(blocks.grow(&mut table, amount), fits);
                        tables.push(table);
                    }
                    1 if which < tables.len() => {
                        let pages = amount.min(tables[which].len());
                        tables.push(blocks.fork(&tables[which], pages));
                    }
                    2 if which < tables.len() => blocks.free(tables.swap_remove(which)),
                    _ => {}
                }
                blocks.check(&tables).unwrap();
                prop_assert_eq!(blocks.free_pages() + blocks.owned_pages(), 16);
            }
        }
    }
}
