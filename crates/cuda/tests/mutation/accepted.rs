//! Mutants that nothing can notice, or that no test is for, with the reasons: `kernels/cuda/mutants.txt`.

use ptx_sim::Mutant;

const TEXT: &str = include_str!("../../../../kernels/cuda/mutants.txt");

/// Why a mutant may live, if a line of the file says so: `operator; start of the kernel's name; part of the line; reason`.
pub(crate) fn reason(mutant: &Mutant) -> Option<&'static str> {
    let lines = TEXT.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    lines.map(|line| line.splitn(4, ';').map(str::trim).collect::<Vec<_>>()).find_map(|fields| {
        match fields[..] {
            [operator, kernel, part, reason] => {
                let is_this = operator == mutant.mutation.operator
                    && mutant.mutation.kernel.starts_with(kernel)
                    && words(&mutant.text).contains(part);
                is_this.then_some(reason)
            }
            _ => panic!("mutants.txt: {fields:?} are not four fields"),
        }
    })
}
