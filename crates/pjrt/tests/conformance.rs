//! Cases of the suite, lowered to HLO and compiled by plugins that others have built, have the reference's bits.
// The plugins that others publish are for this alone.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use samebits_conformance::{Compiled, Group, check_every};
use samebits_pjrt::{
    PjrtDevice, Plugin,
    testing::{self, CpuPlugin},
};

/// Every so many-th case, on a plugin; all of them with `SAMEBITS_CASE_STRIDE=1`, which takes some eight minutes.
fn check(plugin: CpuPlugin, stride: usize) {
    let chosen = std::env::var("SAMEBITS_CASE_STRIDE").ok().map(|it| it.parse().expect("a number"));
    let plugin = Plugin::open(plugin.path()).expect("a plugin");
    let device = PjrtDevice::new(plugin.client(&[]).expect("a client"), 0).expect("a device");
    for &group in Group::ALL {
        check_every(chosen.unwrap_or(stride), &Compiled(&device), group, &[]).expect_clean();
    }
}

#[test]
fn newest_plugin() {
    check(testing::CPU_PLUGINS[2], 12);
}

#[test]
fn plugin_of_another_version() {
    check(testing::CPU_PLUGINS[1], 48);
}

#[test]
fn oldest_plugin() {
    check(testing::CPU_PLUGINS[0], 48);
}
