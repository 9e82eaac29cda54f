//! The device's bits against the hashes of the contract's, which are committed: no reference runs.

use std::{collections::BTreeMap, fs, path::Path};

use samebits_conformance::{Case, Check, Group, canonical_bits};
use samebits_cuda::Cuda;
use serde_json::{Value, json};

use crate::Size;

/// Groups of which one takes minutes on the stand-in.
const SLOW: [Group; 4] = [Group::LinearDense, Group::NormLinears, Group::FeedForward, Group::Attention];

/// Cases that ran, and the groups whose results have other bits.
pub(crate) fn compare(cuda: &Cuda, size: Size) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/tests/golden/bits.json");
    let golden: Value =
        serde_json::from_str(&fs::read_to_string(&path).expect("the golden bits")).expect("JSON");
    let groups = Group::ALL.iter().filter(|group| size == Size::Device || !SLOW.contains(group));
    let (mut cases, mut differ) = (0, BTreeMap::new());
    for group in groups {
        let checks = group.checks();
        let of_group: Vec<&Case> = checks.iter().filter_map(reference).collect();
        if of_group.is_empty() {
            continue;
        }
        cases += of_group.len();
        let expected = golden["groups"][group.name()]["results"].as_str().expect("a hash");
        match hash(cuda, &of_group) {
            Ok(found) if found == expected => {}
            Ok(found) => drop(differ.insert(group.name(), format!("{found}, not {expected}"))),
            Err(error) => drop(differ.insert(group.name(), error)),
        }
    }
    let differ: Vec<String> = differ.into_iter().map(|(group, how)| format!("{group}: {how}")).collect();
    json!({ "numerics_version": golden["numerics_version"], "cases": cases, "differ": differ })
}

fn reference(check: &Check) -> Option<&Case> {
    match check {
        Check::Reference(case) => Some(case),
        Check::Invariance(_) => None,
    }
}

/// As `golden.rs` of the conformance suite has it.
fn hash(cuda: &Cuda, cases: &[&Case]) -> Result<String, String> {
    let mut results = blake3::Hasher::new();
    for case in cases {
        for result in case.run(cuda).map_err(|error| format!("{}: {error}", case.name))? {
            results.update(format!("{} {}", result.dtype(), result.shape()).as_bytes());
            for bits in canonical_bits(&result, case.zero_sign_is_open()) {
                results.update(&bits.to_le_bytes());
            }
        }
    }
    Ok(results.finalize().to_hex()[..32].to_owned())
}
