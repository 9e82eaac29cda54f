//! What the machine could do at best, with the instructions that the kernels use: read memory, add up int8 products, and
//! multiply and add f32.
//!
//! A kernel's share of these says how far it is from this machine as it is now, with its other tenants and at its present
//! clock, and not from a data sheet.

use std::{
    hint::black_box,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    isa::{Isa, Kernel},
    simd::Simd,
};

/// Calls a function once on every thread, all at a time, as [`Pool::everywhere`](crate::pool::Pool::everywhere) does.
pub type Everywhere<'a> = &'a dyn Fn(&(dyn Fn() + Sync));

/// How long a figure takes, unless a pass over memory takes longer.
const RUN: Duration = Duration::from_millis(2);

/// Lines of 64 bytes that a thread reads in a row: many pages, so that what fetches ahead can.
const PIECE: usize = 1 << 10;

/// Lines of 64 bytes that a first-level cache holds beside the stack.
const LINES: usize = 240;

/// Times that a peak goes through its lines before it looks at the clock.
const PASSES: usize = 32;

/// Bytes a second that all threads together read of `buffer`, from its start to its end at least once. A buffer as large as
/// a kernel's data finds the same caches as that data does. 0 for no buffer.
pub fn read_bandwidth(isa: Isa, everywhere: Everywhere<'_>, buffer: &[[u8; 64]]) -> f64 {
    let pieces: Vec<_> = buffer.chunks(PIECE).collect();
    let (start, next) = (Instant::now(), AtomicUsize::new(0));
    rate(everywhere, &|_| {
        let i = next.fetch_add(1, Ordering::Relaxed);
        if i >= pieces.len() && (pieces.is_empty() || start.elapsed() >= RUN) {
            return None;
        }
        let piece = pieces[i % pieces.len()];
        black_box(isa.run(Read(piece)));
        Some(size_of_val(piece))
    })
}

/// Operations a second, two for each multiply-add of int8, of all threads on data in their first-level caches.
pub fn int8_peak(isa: Isa, everywhere: Everywhere<'_>) -> f64 {
    let lines = [[1; 64]; LINES];
    let dots = |run: fn(Isa, &[[u8; 64]; LINES]) -> i32, tokens: usize| {
        peak(everywhere, 2 * 64 * tokens, &|| {
            black_box(run(isa, black_box(&lines)));
        })
    };
    let small = dots(|isa, lines| isa.run(Dots::<2, 2> { lines, x: black_box([1; 2]) }), 2);
    let middle = dots(|isa, lines| isa.run(Dots::<4, 2> { lines, x: black_box([1; 2]) }), 2);
    let large = dots(|isa, lines| isa.run(Dots::<4, 3> { lines, x: black_box([1; 3]) }), 3);
    small.max(middle).max(large)
}

/// Operations a second, a multiplication and an addition for each multiply-add of f32, of all threads on data in their
/// first-level caches. The contract does not fuse the two, so neither does this.
pub fn f32_peak(isa: Isa, everywhere: Everywhere<'_>) -> f64 {
    let lines = [[1.0; 16]; LINES];
    let products = |run: fn(Isa, &[[f32; 16]; LINES]) -> f32, tokens: usize| {
        peak(everywhere, 2 * 16 * tokens, &|| {
            black_box(run(isa, black_box(&lines)));
        })
    };
    let small = products(|isa, lines| isa.run(Products::<2, 2> { lines, x: black_box([1.0; 2]) }), 2);
    let middle = products(|isa, lines| isa.run(Products::<4, 2> { lines, x: black_box([1.0; 2]) }), 2);
    let large = products(|isa, lines| isa.run(Products::<4, 3> { lines, x: black_box([1.0; 3]) }), 3);
    small.max(middle).max(large)
}

/// Operations a second of calling `work` over and over, which does `a_line` of them for each line and pass. Every thread
/// calls it at least once, even if it starts late on a busy machine.
fn peak(everywhere: Everywhere<'_>, a_line: usize, work: &(dyn Fn() + Sync)) -> f64 {
    let start = Instant::now();
    rate(everywhere, &|done| {
        (done == 0 || start.elapsed() < RUN).then(|| {
            work();
            LINES * PASSES * a_line
        })
    })
}

/// What all threads do in a second. `work` is told how much this thread has done, does some and says how much, until there is
/// no more to do.
fn rate(everywhere: Everywhere<'_>, work: &(dyn Fn(usize) -> Option<usize> + Sync)) -> f64 {
    let total = Mutex::new(0.0);
    everywhere(&|| {
        let (start, mut done) = (Instant::now(), 0);
        while let Some(more) = work(done) {
            done += more;
        }
        // A thread that came too late for any work adds nothing, whatever its clock says.
        let rate = done as f64 / start.elapsed().as_secs_f64().max(1e-9);
        *total.lock().unwrap_or_else(PoisonError::into_inner) += rate;
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Loads every byte.
struct Read<'a>(&'a [[u8; 64]]);

impl Kernel for Read<'_> {
    type Output = i32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> i32 {
        let (chunks, rest) = self.0.as_chunks::<4>();
        let mut acc = [s.splat_i32(0); 4];
        for lines in chunks {
            for (acc, line) in acc.iter_mut().zip(lines) {
                *acc = s.xor(*acc, s.load_bytes(line));
            }
        }
        for (acc, line) in acc.iter_mut().zip(rest) {
            *acc = s.xor(*acc, s.load_bytes(line));
        }
        s.sum_i32(s.xor(s.xor(acc[0], acc[1]), s.xor(acc[2], acc[3])))
    }
}

/// Dot products of lines by `T` tokens, in `P` times `T` independent sums; gives their sum. How many serve best depends on
/// the registers and on how long an addition takes.
struct Dots<'a, const P: usize, const T: usize> {
    lines: &'a [[u8; 64]; LINES],
    x: [i8; T],
}

impl<const P: usize, const T: usize> Kernel for Dots<'_, P, T> {
    type Output = i32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> i32 {
        let x = self.x.map(|x| s.splat_i32(i32::from_le_bytes([x as u8; 4])));
        let mut acc = [[s.splat_i32(0); T]; P];
        for _ in 0..PASSES {
            for lines in self.lines.as_chunks::<P>().0 {
                for (acc, line) in acc.iter_mut().zip(lines) {
                    let line = s.load_bytes(line);
                    for (acc, &x) in acc.iter_mut().zip(&x) {
                        *acc = s.dot_u7(*acc, line, x);
                    }
                }
            }
        }
        acc.as_flattened().iter().fold(0, |sum, &acc| sum + s.sum_i32(acc))
    }
}

/// As [`Dots`], of f32.
struct Products<'a, const P: usize, const T: usize> {
    lines: &'a [[f32; 16]; LINES],
    x: [f32; T],
}

impl<const P: usize, const T: usize> Kernel for Products<'_, P, T> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let x = self.x.map(|x| s.splat(x));
        let mut acc = [[s.splat(0.0); T]; P];
        for _ in 0..PASSES {
            for lines in self.lines.as_chunks::<P>().0 {
                for (acc, line) in acc.iter_mut().zip(lines) {
                    let line = s.load(line);
                    for (acc, &x) in acc.iter_mut().zip(&x) {
                        *acc = s.add(*acc, s.mul(line, x));
                    }
                }
            }
        }
        acc.as_flattened().iter().fold(0.0, |sum, &acc| sum + s.tree(acc))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_computes_as_much_as_it_counts() {
        for isa in Isa::available() {
            let (bytes, floats) = ([[1; 64]; LINES], [[1.0; 16]; LINES]);
            let dots = isa.run(Dots::<4, 3> { lines: &bytes, x: [1; 3] });
            assert_eq!(dots as usize, 64 * LINES * PASSES * 3, "{}", isa.name());
            let products = isa.run(Products::<4, 3> { lines: &floats, x: [1.0; 3] });
            assert_eq!(products as usize, 16 * LINES * PASSES * 3, "{}", isa.name());
            assert_eq!(
                isa.run(Dots::<2, 2> { lines: &bytes, x: [-1; 2] }),
                -2 * (64 * LINES * PASSES) as i32
            );
        }
    }

    #[test]
    fn every_byte_is_read() {
        for isa in Isa::available() {
            for (lines, at) in [(1, 0), (7, 6), (64, 37)] {
                let mut buffer = vec![[0; 64]; lines];
                buffer[at][60] = 5;
                assert_eq!(isa.run(Read(&buffer)), 5, "{} of {lines}", at);
            }
        }
    }

    #[test]
    fn ceilings_are_rates_of_all_threads() {
        let two =
            |f: &(dyn Fn() + Sync)| std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(f))));
        for isa in Isa::available() {
            let buffer = vec![[1; 64]; 5001];
            let rates = [read_bandwidth(isa, &two, &buffer), int8_peak(isa, &two), f32_peak(isa, &two)];
            assert!(rates.iter().all(|rate| rate.is_finite() && *rate > 1e6), "{}: {rates:?}", isa.name());
        }
        assert_eq!(read_bandwidth(Isa::SCALAR, &two, &[]), 0.0);
        assert_eq!(int8_peak(Isa::SCALAR, &|_| {}), 0.0);
    }
}
