//! What the numerics contract allows in PTX.

/// The mark, in a comment of inline assembly, that a fused multiply-add has an exact product (rule R2).
const EXACT_PRODUCT: &str = "// exact product";

/// Float types whose arithmetic is f32's alone (rule R1).
const OTHER_FLOATS: [&str; 5] = ["f64", "f16", "f16x2", "bf16", "bf16x2"];

/// What breaks the contract, a line each.
pub(super) fn problems(ptx: &str) -> Vec<String> {
    let mut entry = "";
    let mut found = Vec::new();
    for (line, number) in ptx.lines().zip(1..) {
        if let Some(name) = line.strip_prefix(".visible .entry ") {
            entry = name.trim_end_matches('(');
        }
        let is_exact = line.contains(EXACT_PRODUCT);
        let code = line.split("//").next().unwrap_or_default();
        for statement in code.split(';') {
            if let Some(why) = opcode(statement).and_then(|opcode| problem(opcode, is_exact)) {
                found.push(format!("line {number}, kernel {entry}: `{}`: {why}", statement.trim()));
            }
        }
    }
    found
}

/// The instruction of a statement, past its guard.
fn opcode(statement: &str) -> Option<&str> {
    let mut words = statement.split_whitespace().map(|word| word.trim_start_matches(['{', '}']));
    words.find(|word| !word.is_empty() && !word.starts_with('@') && !word.ends_with(':'))
}

fn problem(opcode: &str, is_exact: bool) -> Option<&'static str> {
    let mut parts = opcode.split('.');
    let base = parts.next()?;
    let modifiers: Vec<&str> = parts.collect();
    let has = |modifier: &str| modifiers.contains(&modifier);
    if has("approx") || has("full") {
        return Some("an approximation");
    }
    if has("ftz") {
        return Some("flushes subnormals");
    }
    let is_nearest = has("rn");
    match base {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "sqrt" | "rcp"
            if OTHER_FLOATS.iter().any(|other| has(other)) =>
        {
            Some("float arithmetic that is not f32's")
        }
        "mad" if has("f32") => Some("fused; use a marked fma, or two instructions"),
        "fma" if !is_exact => Some("fused, and not marked as of an exact product"),
        "add" | "sub" | "mul" | "fma" | "div" | "sqrt" | "rcp" if has("f32") && !is_nearest => {
            Some("not rounded to nearest, or may be fused")
        }
        "ex2" | "lg2" | "sin" | "cos" | "tanh" | "rsqrt" => Some("an approximation"),
        "atom" | "red" if has("add") && modifiers.iter().any(|it| is_float(it)) => {
            Some("a float sum in no order")
        }
        "cvt" if is_narrowing(&modifiers) && !is_nearest => Some("not rounded to nearest"),
        _ => None,
    }
}

fn is_float(kind: &str) -> bool {
    kind == "f32" || OTHER_FLOATS.contains(&kind)
}

/// Whether a conversion to a float type rounds to another than an integral value.
fn is_narrowing(modifiers: &[&str]) -> bool {
    let &[.., to, from] = modifiers else { return false };
    let is_exact = to == from || (to == "f32" && ["f16", "bf16"].contains(&from));
    is_float(to) && !is_exact
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Problems of one instruction in a kernel.
    fn of(instruction: &str) -> Vec<String> {
        problems(&format!(".visible .entry k(\n)\n{{\n\t{instruction}\n\tret;\n}}\n"))
    }

    #[test]
    fn the_contract_is_allowed() {
        for instruction in [
            "add.rn.f32 \t%f1, %f2, 0f3F800000;",
            "@%p1 mul.rn.f32 %f1, %f2, %f3;",
            "div.rn.f32 %f1, %f2, %f3;",
            "rcp.rn.f32 %f1, %f2;",
            "sqrt.rn.f32 %f1, %f2;",
            "fma.rn.f32 %f1, %f2, %f3, %f4; // exact product",
            "mad.lo.s32 %r1, %r2, %r3, %r4;",
            "mul.wide.u32 %rd1, %r1, 4;",
            "cvt.rni.f32.f32 %f1, %f2;",
            "cvt.rzi.s32.f32 %r1, %f2;",
            "cvt.rn.f32.s32 %f1, %r2;",
            "cvt.f32.f16 %f1, %rs2;",
            "cvt.rn.bf16.f32 %rs1, %f2;",
            "max.NaN.f32 %f1, %f2, %f3;",
            "atom.global.add.u32 %r1, [%rd1], 1;",
            "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1}, {%r2}, {%r3}, {%r4};",
        ] {
            assert_eq!(of(instruction), Vec::<String>::new(), "{instruction}");
        }
    }

    #[test]
    fn what_breaks_the_contract_is_found() {
        for instruction in [
            "add.f32 %f1, %f2, %f3;",
            "@!%p1 sub.f32 %f1, %f2, %f3;",
            "mul.rz.f32 %f1, %f2, %f3;",
            "mul.rn.ftz.f32 %f1, %f2, %f3;",
            "fma.rn.f32 %f1, %f2, %f3, %f4;",
            "fma.rz.f32 %f1, %f2, %f3, %f4; // exact product",
            "mad.rn.f32 %f1, %f2, %f3, %f4;",
            "div.approx.f32 %f1, %f2, %f3;",
            "div.full.f32 %f1, %f2, %f3;",
            "rcp.approx.ftz.f32 %f1, %f2;",
            "sqrt.f32 %f1, %f2;",
            "ex2.approx.f32 %f1, %f2;",
            "rsqrt.approx.f32 %f1, %f2;",
            "add.rn.f64 %fd1, %fd2, %fd3;",
            "fma.rn.f16x2 %r1, %r2, %r3, %r4;",
            "red.global.add.f32 [%rd1], %f1;",
            "atom.global.add.noftz.f16 %rs1, [%rd1], %rs2;",
            "cvt.rz.f16.f32 %rs1, %f2;",
            "cvt.rz.f32.s32 %f1, %r2;",
            "$L__BB0_1: add.f32 %f1, %f2, %f3;",
        ] {
            let found = of(instruction);
            assert!(found.len() == 1 && found[0].contains("line 4, kernel k"), "{instruction}: {found:?}");
        }
    }
}
