//! `ldmatrix` and `mma.sync` against sums written out, with the places of fragments from the PTX manual's figures.

mod common;

use common::{Bench, kernel};

/// A number of a sequence that looks random.
fn random(index: u64) -> u64 {
    (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24 ^ index.wrapping_mul(0xd134_2543_de82_ef95) >> 40
}

/// Each lane's registers, 8 bytes for each, from and to memory.
fn multiply(bench: &Bench, code: &str, fragments: [usize; 3], input: &[[u32; 32]]) -> Vec<[u32; 32]> {
    let mut body = String::from("\tmad.wide.u32 %rd1, %t, 128, %in;\n");
    let names = [("a", fragments[0]), ("b", fragments[1]), ("c", fragments[2])];
    let mut at = 0;
    for (name, count) in names {
        body += &format!("\t.reg .b32 %{name}<{count}>;\n");
        for index in 0..count {
            body += &format!("\tld.global.u32 %{name}{index}, [%rd1+{at}];\n");
            at += 8;
        }
    }
    body += &format!("\t.reg .b32 %d<4>;\n\t{code}\n\tmad.wide.u32 %rd2, %t, 8, %out;\n");
    let mut results = Vec::new();
    for register in 0..4 {
        let text = kernel(&format!("{body}\tst.global.u32 [%rd2], %d{register};\n"));
        let mut words = vec![0u64; 32 * 16];
        for (index, values) in input.iter().enumerate() {
            for lane in 0..32 {
                words[lane * 16 + index] = values[lane].into();
            }
        }
        let stored = bench.map(&text, &words, 32);
        results.push(std::array::from_fn(|lane| stored[lane] as u32));
    }
    results
}

fn fragments(count: usize, seed: u64, value: impl Fn(u64) -> u32) -> Vec<[u32; 32]> {
    (0..count as u64)
        .map(|register| std::array::from_fn(|lane| value(random(seed + register * 32 + lane as u64))))
        .collect()
}

/// Of 8-bit elements, by the figures for m16n8k32 and m16n8k16: row and column of element i of a fragment.
fn a_8(lane: usize, i: usize) -> (usize, usize) {
    let (group, member) = (lane >> 2, lane % 4);
    let row = if i < 4 || (8..12).contains(&i) { group } else { group + 8 };
    let column = if i < 8 { member * 4 + (i & 3) } else { member * 4 + (i & 3) + 16 };
    (row, column)
}

fn b_8(lane: usize, i: usize) -> (usize, usize) {
    let (group, member) = (lane >> 2, lane % 4);
    let row = if i < 4 { member * 4 + (i & 3) } else { member * 4 + (i & 3) + 16 };
    (row, group)
}

fn c_32(lane: usize, i: usize) -> (usize, usize) {
    let (group, member) = (lane >> 2, lane % 4);
    (if i < 2 { group } else { group + 8 }, member * 2 + (i & 1))
}

/// Of 16-bit elements, by the figures for m16n8k16 and m16n8k8.
fn a_16(lane: usize, i: usize) -> (usize, usize) {
    let (group, member) = (lane >> 2, lane % 4);
    let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
    let column = if i < 4 { member * 2 + (i & 1) } else { member * 2 + (i & 1) + 8 };
    (row, column)
}

fn b_16(lane: usize, i: usize) -> (usize, usize) {
    let (group, member) = (lane >> 2, lane % 4);
    let row = if i < 2 { member * 2 + (i & 1) } else { member * 2 + (i & 1) + 8 };
    (row, group)
}

#[test]
fn integers() {
    let bench = Bench::new();
    for (k, types) in [(32, "s8.s8"), (32, "u8.s8"), (32, "s8.u8"), (32, "u8.u8"), (16, "s8.s8")] {
        let (a_count, b_count) = (k / 8, k / 16);
        let a = fragments(a_count, 1, |value| value as u32);
        let b = fragments(b_count, 1000, |value| value as u32);
        let c = fragments(4, 2000, |value| value as u32);
        let (a_signed, b_signed) = (types.starts_with('s'), types.ends_with("s8"));
        let byte = |word: u32, i: usize, signed: bool| {
            let byte = (word >> (8 * (i % 4))) as u8;
            if signed { i64::from(byte as i8) } else { i64::from(byte) }
        };
        let (mut left, mut right) = (vec![[0i64; 32]; 16], vec![[0i64; 32]; 8]);
        for lane in 0..32 {
            for i in 0..4 * a_count {
                let (row, column) = a_8(lane, i);
                left[row][column] = byte(a[i / 4][lane], i, a_signed);
            }
            for i in 0..4 * b_count {
                let (row, column) = b_8(lane, i);
                right[column][row] = byte(b[i / 4][lane], i, b_signed);
            }
        }
        let regs = |name: &str, count: usize| {
            (0..count).map(|index| format!("%{name}{index}")).collect::<Vec<_>>().join(", ")
        };
        let code = format!(
            "mma.sync.aligned.m16n8k{k}.row.col.s32.{types}.s32 {{{}}}, {{{}}}, {{{}}}, {{{}}};",
            regs("d", 4),
            regs("a", a_count),
            regs("b", b_count),
            regs("c", 4)
        );
        let input: Vec<[u32; 32]> = [a.clone(), b.clone(), c.clone()].concat();
        let d = multiply(&bench, &code, [a_count, b_count, 4], &input);
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = c_32(lane, i);
                let sum: i64 = (0..k).map(|depth| left[row][depth] * right[column][depth]).sum();
                assert_eq!(
                    d[i][lane],
                    (i64::from(c[i][lane] as i32) + sum) as u32,
                    "{code} lane {lane} element {i}"
                );
            }
        }
    }
}

#[test]
fn floats_of_integer_value() {
    let bench = Bench::new();
    for (ty, k) in [("bf16", 16), ("f16", 16), ("bf16", 8), ("f16", 8)] {
        let half = |value: i32| -> u32 {
            match ty {
                "f16" => half::f16::from_f32(value as f32).to_bits().into(),
                _ => half::bf16::from_f32(value as f32).to_bits().into(),
            }
        };
        let small = |bits: u64| (bits % 255) as i32 - 127;
        let pair = |value: u64| half(small(value)) | half(small(value >> 16)) << 16;
        let (a_count, b_count) = (k / 4, k / 8);
        let a = fragments(a_count, 3, pair);
        let b = fragments(b_count, 3000, pair);
        let c = fragments(4, 4000, |value| (small(value) as f32).to_bits());
        let element = |word: u32, i: usize| -> i64 {
            let bits = (word >> (16 * (i % 2))) as u16;
            match ty {
                "f16" => half::f16::from_bits(bits).to_f32() as i64,
                _ => half::bf16::from_bits(bits).to_f32() as i64,
            }
        };
        let (mut left, mut right) = (vec![[0i64; 16]; 16], vec![[0i64; 16]; 8]);
        for lane in 0..32 {
            for i in 0..2 * a_count {
                let (row, column) = a_16(lane, i);
                left[row][column] = element(a[i / 2][lane], i);
            }
            for i in 0..2 * b_count {
                let (row, column) = b_16(lane, i);
                right[column][row] = element(b[i / 2][lane], i);
            }
        }
        let regs = |name: &str, count: usize| {
            (0..count).map(|index| format!("%{name}{index}")).collect::<Vec<_>>().join(", ")
        };
        let code = format!(
            "mma.sync.aligned.m16n8k{k}.row.col.f32.{ty}.{ty}.f32 {{{}}}, {{{}}}, {{{}}}, {{{}}};",
            regs("d", 4),
            regs("a", a_count),
            regs("b", b_count),
            regs("c", 4)
        );
        let input: Vec<[u32; 32]> = [a.clone(), b.clone(), c.clone()].concat();
        let d = multiply(&bench, &code, [a_count, b_count, 4], &input);
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = c_32(lane, i);
                let sum: i64 = (0..k).map(|depth| left[row][depth] * right[column][depth]).sum();
                let expected = f32::from_bits(c[i][lane]) as i64 + sum;
                assert_eq!(f32::from_bits(d[i][lane]) as i64, expected, "{code} lane {lane} element {i}");
            }
        }
    }
}

#[test]
fn matrices_are_loaded() {
    let bench = Bench::new();
    // Four matrices of 8 rows of 8 elements; element e of the 256 has the value e.
    let text = |transposed: &str, register: usize| {
        kernel(&format!(
            "
	.shared .align 16 .b8 tile[512];
	mov.u32 %r1, tile;
	shl.b32 %r2, %t, 4;
	add.u32 %r3, %r1, %r2;
	mad.wide.u32 %rd1, %t, 16, %in;
	ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%rd1];
	st.shared.v4.u32 [%r3], {{%r4, %r5, %r6, %r7}};
	bar.warp.sync -1;
	ldmatrix.sync.aligned.m8n8.x4{transposed}.shared.b16 {{%r8, %r9, %r10, %r11}}, [%r3];
	mad.wide.u32 %rd2, %t, 8, %out;
	st.global.u32 [%rd2], %r{register};
"
        ))
    };
    let halves: Vec<u16> = (0..256).collect();
    let words: Vec<u64> = halves
        .chunks(4)
        .map(|four| four.iter().rev().fold(0, |word, &half| word << 16 | u64::from(half)))
        .collect();
    for matrix in 0..4 {
        let element = |row: u64, column: u64| 64 * matrix + 8 * row + column;
        let plain: Vec<u64> = (0..32)
            .map(|lane| element(lane / 4, 2 * (lane % 4)) | element(lane / 4, 2 * (lane % 4) + 1) << 16)
            .collect();
        let transposed: Vec<u64> = (0..32)
            .map(|lane| element(2 * (lane % 4), lane / 4) | element(2 * (lane % 4) + 1, lane / 4) << 16)
            .collect();
        assert_eq!(bench.map(&text("", 8 + matrix as usize), &words, 32), plain);
        assert_eq!(bench.map(&text(".trans", 8 + matrix as usize), &words, 32), transposed);
    }
}
