//! Writing keys and values to the cache.

use std::marker::PhantomData;

use samebits_tensor::{KvShape, contract::HEAD_BLOCK};

use crate::{
    cpu::{
        isa::{Isa, Kernel},
        quantize::block_of,
        simd::Simd,
    },
    parts::Parts,
};

/// The rows of a cache, to be written: those of some kv heads by each task.
pub struct KvRowsMut<'a> {
    shape: KvShape,
    heads: usize,
    k: *mut u8,
    k_scale: *mut f32,
    v: *mut u8,
    v_scale: *mut f32,
    owner: PhantomData<(&'a mut [u8], &'a mut [f32])>,
}

/// New keys and values.
#[derive(Clone, Copy, Debug)]
pub struct NewKv<'a> {
    /// `[t, kv_heads, head_dim]`.
    pub k: &'a [f32],
    /// `[t, kv_heads, head_dim]`.
    pub v: &'a [f32],
    /// `[t]`: `page * page_size + offset`.
    pub slots: &'a [i32],
}

impl<'a> KvRowsMut<'a> {
    /// A cache whose tensors are as [`super::KvRows`] has them, `heads` kv heads a part.
    ///
    /// # Panics
    /// If a length does not fit, or a part would have no heads.
    pub fn new(
        shape: KvShape,
        heads: usize,
        k: &'a mut [u8],
        k_scale: &'a mut [f32],
        v: &'a mut [u8],
        v_scale: &'a mut [f32],
    ) -> Self {
        let (rows, bytes) = (shape.rows(), shape.rows() * shape.head_dim);
        let fits = k.len() == bytes && v.len() == bytes && v_scale.len() == rows;
        assert!(heads > 0 && fits && k_scale.len() == rows * shape.head_blocks(), "a cache of {shape:?}");
        let (k, k_scale) = (k.as_mut_ptr(), k_scale.as_mut_ptr());
        KvRowsMut {
            shape,
            heads,
            k,
            k_scale,
            v: v.as_mut_ptr(),
            v_scale: v_scale.as_mut_ptr(),
            owner: PhantomData,
        }
    }
}

// SAFETY: only the rows of some heads are given out, each once: as if mutable slices were sent.
unsafe impl Sync for KvRowsMut<'_> {}

// SAFETY: a row is one head's, and the tensors are borrowed mutably for as long.
unsafe impl<'a> Parts for KvRowsMut<'a> {
    type Part = KvHeads<'a>;

    fn count(&self) -> usize {
        self.shape.kv_heads.div_ceil(self.heads)
    }

    unsafe fn part(&self, i: usize) -> KvHeads<'a> {
        let first = i * self.heads;
        let end = (first + self.heads).min(self.shape.kv_heads);
        KvHeads { cache: KvRowsMut { ..*self }, first, end }
    }
}

/// The rows of the kv heads from `first` to `end`.
pub struct KvHeads<'a> {
    cache: KvRowsMut<'a>,
    first: usize,
    end: usize,
}

impl KvHeads<'_> {
    /// Quantises the heads' keys, in blocks of 32 channels, and values into their slots.
    ///
    /// # Panics
    /// If a length does not fit, or a slot is outside of the cache.
    pub fn store(self, isa: Isa, new: NewKv<'_>) {
        let KvShape { kv_heads, head_dim, .. } = self.cache.shape;
        let values = new.slots.len() * kv_heads * head_dim;
        assert!(new.k.len() == values && new.v.len() == values, "{} keys", new.slots.len());
        isa.run(Store { heads: self, new });
    }

    /// Key, scales of the key, value and scale of the value.
    #[inline(always)]
    fn row(&mut self, slot: i32, head: usize) -> (&mut [u8], &mut [f32], &mut [u8], &mut f32) {
        let KvShape { pages, page_size, kv_heads, head_dim } = self.cache.shape;
        let slot = slot as usize;
        assert!(
            slot < pages * page_size && (self.first..self.end).contains(&head),
            "slot {slot} of head {head}"
        );
        let row = (slot / page_size * kv_heads + head) * page_size + slot % page_size;
        let (bytes, blocks) = (row * head_dim, self.cache.shape.head_blocks());
        // SAFETY: slot and head are inside, and so is the row, which is long enough in each tensor; it is one of a head that
        // nobody else has, and is borrowed for as long as `self`.
        unsafe {
            (
                std::slice::from_raw_parts_mut(self.cache.k.add(bytes), head_dim),
                std::slice::from_raw_parts_mut(self.cache.k_scale.add(row * blocks), blocks),
                std::slice::from_raw_parts_mut(self.cache.v.add(bytes), head_dim),
                &mut *self.cache.v_scale.add(row),
            )
        }
    }
}

struct Store<'a, 'b> {
    heads: KvHeads<'a>,
    new: NewKv<'b>,
}

impl Kernel for Store<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Compiled for each, so that lengths are constants.
        match self.heads.cache.shape.head_dim {
            64 => self.store(s, 64),
            128 => self.store(s, 128),
            head_dim => self.store(s, head_dim),
        }
    }
}

impl Store<'_, '_> {
    #[inline(always)]
    fn store<S: Simd>(mut self, s: S, head_dim: usize) {
        let kv_heads = self.heads.cache.shape.kv_heads;
        for (token, &slot) in self.new.slots.iter().enumerate() {
            for head in self.heads.first..self.heads.end {
                let start = (token * kv_heads + head) * head_dim;
                let (new_k, new_v) =
                    (&self.new.k[start..start + head_dim], &self.new.v[start..start + head_dim]);
                let (k, k_scale, v, v_scale) = self.heads.row(slot, head);
                let blocks = new_k.chunks(HEAD_BLOCK).zip(k[..head_dim].chunks_mut(HEAD_BLOCK));
                for ((x, q), scale) in blocks.zip(k_scale) {
                    *scale = block_of(s, x, q);
                }
                *v_scale = block_of(s, new_v, &mut v[..head_dim]);
            }
        }
    }
}
