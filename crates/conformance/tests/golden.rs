//! The bits of the contract, as hashes in a file: a change of any bit is noticed, and is a new numerics version.
//!
//! `SAMEBITS_BLESS=1 cargo test -p samebits-conformance --test golden` writes the file anew, after the cases or
//! [`NUMERICS_VERSION`] changed. It refuses to where bits changed and the version did not.

use std::{collections::BTreeMap, fs, path::PathBuf};

use samebits_conformance::{Case, Check, Group, canonical_bits};
use samebits_cpu::Host;
use samebits_tensor::contract::NUMERICS_VERSION;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Golden {
    numerics_version: u32,
    groups: BTreeMap<String, Hashes>,
}

/// Of all cases of a group, in order.
#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Hashes {
    cases: usize,
    operands: String,
    results: String,
}

#[test]
fn the_contract_has_the_bits_of_its_version() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bits.json");
    let found = compute();
    let stored = fs::read_to_string(&path).ok();
    let stored: Option<Golden> = stored.map(|text| serde_json::from_str(&text).expect("a golden file"));
    let changed = stored.as_ref().map(|stored| changed_bits(stored, &found)).unwrap_or_default();
    assert!(
        changed.is_empty(),
        "the bits of {changed:?} are no longer those of numerics version {NUMERICS_VERSION}: undo the change, or raise \
         NUMERICS_VERSION, say why in docs/numerics.md, and run this test with SAMEBITS_BLESS=1"
    );
    if std::env::var_os("SAMEBITS_BLESS").is_some() {
        let text = serde_json::to_string_pretty(&found).expect("plain data") + "\n";
        fs::write(&path, text).expect("the golden file is writable");
        return;
    }
    assert_eq!(stored.as_ref(), Some(&found), "the cases changed: run this test with SAMEBITS_BLESS=1");
}

/// Groups whose results differ for the same operands under the same version.
fn changed_bits(stored: &Golden, found: &Golden) -> Vec<String> {
    if stored.numerics_version != found.numerics_version {
        return Vec::new();
    }
    let changed = |name: &String, hashes: &Hashes| {
        let stored = stored.groups.get(name);
        stored.is_some_and(|stored| stored.operands == hashes.operands && stored.results != hashes.results)
    };
    found.groups.iter().filter(|(name, hashes)| changed(name, hashes)).map(|(name, _)| name.clone()).collect()
}

fn compute() -> Golden {
    let hashes = |group: &Group| {
        let checks = group.checks();
        let cases: Vec<&Case> = checks.iter().filter_map(reference).collect();
        (!cases.is_empty()).then(|| (group.name().to_owned(), hash(&cases)))
    };
    Golden { numerics_version: NUMERICS_VERSION, groups: Group::ALL.iter().filter_map(hashes).collect() }
}

fn reference(check: &Check) -> Option<&Case> {
    match check {
        Check::Reference(case) => Some(case),
        Check::Invariance(_) => None,
    }
}

fn hash(cases: &[&Case]) -> Hashes {
    let (mut operands, mut results) = (blake3::Hasher::new(), blake3::Hasher::new());
    for case in cases {
        operands.update(format!("{} {:?}", case.name, case.op).as_bytes());
        case.inputs.iter().for_each(|input| {
            operands.update(input.bytes());
        });
        case.weights.iter().for_each(|weight| {
            operands.update(&weight.bytes);
        });
        for result in case.run(&Host).unwrap_or_else(|error| panic!("{}: {error}", case.name)) {
            results.update(format!("{} {}", result.dtype(), result.shape()).as_bytes());
            let bits = canonical_bits(&result, case.zero_sign_is_open());
            bits.into_iter().for_each(|bits| {
                results.update(&bits.to_le_bytes());
            });
        }
    }
    let text = |hasher: &blake3::Hasher| hasher.finalize().to_hex()[..32].to_owned();
    Hashes { cases: cases.len(), operands: text(&operands), results: text(&results) }
}
