//! What names mean between braces.

use std::collections::HashMap;

use super::{LaneMask, Register, Special};
use crate::ptx::Statement;

#[derive(Debug, Clone)]
pub(crate) enum Binding {
    Register(Register),
    /// An address of global or constant memory.
    Global(u64),
    /// An offset in shared memory; `u64::MAX` for the dynamic part.
    Shared(u64),
    /// An offset in the memory of a thread.
    Local(u64),
    /// An offset among the parameters of the kernel.
    Parameter(u64),
    Label(u32),
    Targets(Vec<String>),
}

#[derive(Debug, Default)]
pub(crate) struct Scope {
    names: HashMap<String, Binding>,
}

impl Scope {
    pub(crate) fn bind(&mut self, name: &str, binding: Binding) {
        self.names.insert(name.into(), binding);
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Binding> {
        self.names.get(name)
    }

    /// The labels up to the end of this scope, since they are branched to before they are reached.
    pub(crate) fn declare_labels(&mut self, statements: &[Statement], labels: &mut Vec<Option<u32>>) {
        let mut depth = 0;
        for statement in statements {
            match statement {
                Statement::Open => depth += 1,
                Statement::Close if depth == 0 => return,
                Statement::Close => depth -= 1,
                Statement::Label(name) if depth == 0 => {
                    self.bind(name, Binding::Label(labels.len() as u32));
                    labels.push(None);
                }
                _ => {}
            }
        }
    }
}

/// A special register that does not change while a warp runs.
pub(crate) fn special(name: &str) -> Option<Special> {
    let (base, axis) = match name.rsplit_once('.') {
        Some((base, "x")) => (base, 0),
        Some((base, "y")) => (base, 1),
        Some((base, "z")) => (base, 2),
        _ => (name, 3),
    };
    Some(match (base, axis) {
        ("%tid", 0..=2) => Special::Thread(axis),
        ("%ntid", 0..=2) => Special::Threads(axis),
        ("%ctaid", 0..=2) => Special::Block(axis),
        ("%nctaid", 0..=2) => Special::Blocks(axis),
        // A grid without clusters has clusters of one block.
        ("%clusterid", 0..=2) => Special::Block(axis),
        ("%nclusterid", 0..=2) => Special::Blocks(axis),
        ("%cluster_ctaid", 0..=2) | ("%cluster_ctarank", 3) => Special::Fixed(0),
        ("%cluster_nctaid", 0..=2) | ("%cluster_nctarank", 3) => Special::Fixed(1),
        ("%laneid", 3) => Special::Lane,
        ("%warpid", 3) => Special::Warp,
        ("%nwarpid", 3) => Special::Warps,
        ("%lanemask_eq", 3) => Special::LaneMask(LaneMask::Equal),
        ("%lanemask_lt", 3) => Special::LaneMask(LaneMask::Below),
        ("%lanemask_le", 3) => Special::LaneMask(LaneMask::UpTo),
        ("%lanemask_gt", 3) => Special::LaneMask(LaneMask::Above),
        ("%lanemask_ge", 3) => Special::LaneMask(LaneMask::From),
        ("%total_smem_size", 3) => Special::SharedBytes,
        ("%dynamic_smem_size", 3) => Special::SharedBytesDynamic,
        ("%smid", 3) => Special::Fixed(0),
        ("%nsmid", 3) => Special::Fixed(1),
        _ => return None,
    })
}
