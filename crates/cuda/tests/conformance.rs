//! The suite on a GPU.

use samebits_conformance::{Group, check_every};
use samebits_cuda::Cuda;

/// Every so many-th case; all of them with `SAMEBITS_CASE_STRIDE=1`.
const STRIDE: usize = 12;

fn check(groups: &[Group]) {
    let chosen = std::env::var("SAMEBITS_CASE_STRIDE").ok().map(|it| it.parse().expect("a number"));
    let cuda = Cuda::builder().memory_bytes(256 << 20).open().expect("a device");
    for &group in groups {
        check_every(chosen.unwrap_or(STRIDE), &cuda, group, &[]).expect_clean();
    }
}

#[test]
fn suite() {
    check(Group::ALL);
}
