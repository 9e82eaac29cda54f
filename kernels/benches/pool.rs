//! What it costs to share an operation out to two threads: `cargo bench -p samebits-kernels --bench pool`.
//!
//! 150 operations one after the other, as in a decoded token, of two tasks each that take some microseconds; by this
//! crate's pool and by rayon's `join` and `scope`; with the machine free, and beside a busy thread.

use std::{
    hint::black_box,
    num::NonZero,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main, measurement::WallTime,
};
use samebits_kernels::pool::Pool;

/// Operations of a round.
const OPERATIONS: usize = 150;

/// Turns of the work of a task; about 0, 5 and 20 microseconds.
const TURNS: [usize; 3] = [0, 1_250, 5_000];

/// Work that nothing speeds up.
fn work(turns: usize) {
    let mut x = 1.0f32;
    for _ in 0..turns {
        x = black_box(x * 1.0001 + 0.5);
    }
}

fn share(group: &mut BenchmarkGroup<'_, WallTime>) {
    let pool = Pool::new(NonZero::new(2).expect("a number")).expect("threads");
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    for turns in TURNS {
        group.bench_function(BenchmarkId::new("pool", turns), |b| {
            b.iter(|| (0..OPERATIONS).for_each(|_| pool.run(2, |_| work(turns))));
        });
        group.bench_function(BenchmarkId::new("rayon join", turns), |b| {
            b.iter(|| {
                rayon.install(|| {
                    (0..OPERATIONS).for_each(|_| ((), ()) = rayon::join(|| work(turns), || work(turns)));
                });
            });
        });
        group.bench_function(BenchmarkId::new("rayon scope", turns), |b| {
            b.iter(|| {
                rayon.install(|| {
                    (0..OPERATIONS).for_each(|_| {
                        rayon::scope(|scope| {
                            scope.spawn(|_| work(turns));
                            work(turns);
                        });
                    });
                });
            });
        });
        group.bench_function(BenchmarkId::new("one thread", turns), |b| {
            b.iter(|| (0..2 * OPERATIONS).for_each(|_| work(turns)));
        });
    }
}

fn alone(c: &mut Criterion) {
    share(&mut c.benchmark_group("alone"));
}

fn beside_a_busy_thread(c: &mut Criterion) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                work(1000);
            }
        });
        share(&mut c.benchmark_group("beside a busy thread"));
        stop.store(true, Ordering::Relaxed);
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    targets = alone, beside_a_busy_thread
}
criterion_main!(benches);
