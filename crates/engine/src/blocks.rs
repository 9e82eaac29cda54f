//! Who owns which page of the key-value cache.

use thiserror::Error;

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
/// A page is free when no table shares it, owned otherwise. A prefix cache would be one more owner.
#[derive(Debug)]
pub struct BlockManager {
    shares: Vec<u32>,
    /// Free pages; the last is handed out first, so a small load touches few pages.
    free: Vec<PageId>,
}

impl BlockManager {
    /// A manager of `pages` free pages.
    pub fn new(pages: usize) -> Self {
        Self { shares: vec![0; pages], free: (0..pages as u32).rev().map(PageId).collect() }
    }

    /// All pages.
    pub fn total(&self) -> usize {
        self.shares.len()
    }

    /// Pages that nobody owns.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Pages that somebody owns, each counted once however many share it.
    pub fn owned_pages(&self) -> usize {
        self.total() - self.free.len()
    }

    /// Extends `table` to `pages` pages; takes all or, when too few are free, none and returns false.
    #[must_use]
    pub fn grow(&mut self, table: &mut BlockTable, pages: usize) -> bool {
        let missing = pages.saturating_sub(table.len());
        if missing > self.free.len() {
            return false;
        }
        let taken = self.free.split_off(self.free.len() - missing);
        for &page in taken.iter().rev() {
            self.shares[page.0 as usize] = 1;
            table.0.push(page);
        }
        true
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

    /// Gives up a table's share in its pages; those with no share left are free at once.
    pub fn free(&mut self, table: BlockTable) {
        for page in table.0.into_iter().rev() {
            let shares = &mut self.shares[page.0 as usize];
            *shares -= 1;
            if *shares == 0 {
                self.free.push(page);
            }
        }
    }

    /// Checks that `tables` are all the tables there are, and that every page is free or owned by them and not both.
    ///
    /// # Errors
    /// Names the first page for which this does not hold.
    pub fn check<'a>(&self, tables: impl IntoIterator<Item = &'a BlockTable>) -> Result<(), PageLeak> {
        let mut owners = vec![0u32; self.total()];
        tables.into_iter().flat_map(BlockTable::pages).for_each(|page| owners[page.0 as usize] += 1);
        let mut listed = vec![0u32; self.total()];
        self.free.iter().for_each(|page| listed[page.0 as usize] += 1);
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

/// A page whose owners, share count and place in the free list disagree: a defect in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "page {} has {owners} owners, {shares} shares and is {listed} times in the free list; \
     this is a defect, please report it", page.0
)]
pub struct PageLeak {
    /// The page.
    pub page: PageId,
    /// How many live tables hold it.
    pub owners: u32,
    /// How many shares the manager counts.
    pub shares: u32,
    /// How often the free list holds it.
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
