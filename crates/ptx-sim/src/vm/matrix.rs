//! Matrices in fragments over the lanes of a warp: `ldmatrix`, `stmatrix` and `mma.sync`.

use half::{bf16, f16};

use super::{
    Ran,
    block::Block,
    registers::{Kind, Lanes},
    shared::Use,
    warp::Warp,
};
use crate::{
    decode::{Element, LoadMatrix, Multiply, Register},
    fault::FaultKind,
    ptx::Space,
};

impl Block<'_> {
    /// Matrices of 8 rows of 16 bytes: lanes 8i to 8i + 7 give the rows of matrix i. Lane l holds columns 2(l mod 4) and the next of
    /// row l / 4, or of the transposed matrix.
    pub(super) fn load_matrix(&mut self, warp: &mut Warp, matrix: &LoadMatrix, mask: u32) -> Ran {
        if !warp.meet(mask, warp.alive())? {
            return Ok(());
        }
        if mask != u32::MAX {
            return Err(FaultKind::IncompleteMask { arrived: mask, expected: u32::MAX }.into());
        }
        let rows = self.addresses(warp, &matrix.address, mask)?.map(|address| address & 0xffff_ffff);
        for (index, &register) in matrix.registers.iter().enumerate() {
            let named = 0xff << (8 * index);
            self.check(warp, Space::Shared, &rows, named, 16)?;
            self.count_access(warp.pc, Space::Shared, &rows, named, 16);
            let fragment = |lane: usize, half: usize| match matrix.transposed {
                false => (lane / 4, 2 * (lane % 4) + half),
                true => (2 * (lane % 4) + half, lane / 4),
            };
            let place = |lane: usize, half: usize| {
                let (row, column) = fragment(lane, half);
                rows[8 * index + row] + 2 * column as u64
            };
            let mut values = match matrix.store {
                true => *warp.registers.narrow(register),
                false => [0; 32],
            };
            for (lane, value) in values.iter_mut().enumerate() {
                for half in 0..2 {
                    let at = place(lane, half);
                    let thread = warp.index * 32 + lane as u32;
                    let way = if matrix.store { Use::Write } else { Use::Read };
                    self.shared.note(at, 2, thread, way, false).map_err(|kind| kind.of(lane))?;
                    match matrix.store {
                        true => self.shared.write::<2>(at, (*value >> (16 * half)).into()),
                        false => *value |= (self.shared.read::<2>(at) as u32) << (16 * half),
                    }
                }
            }
            if !matrix.store {
                warp.registers.set_narrow(register, &values, mask);
            }
        }
        warp.pc += 1;
        Ok(())
    }

    pub(super) fn multiply(&mut self, warp: &mut Warp, multiply: &Multiply, mask: u32) -> Ran {
        if !warp.meet(mask, warp.alive())? {
            return Ok(());
        }
        if mask != u32::MAX {
            return Err(FaultKind::IncompleteMask { arrived: mask, expected: u32::MAX }.into());
        }
        for slot in multiply.a.iter().chain(&multiply.b).chain(&multiply.c) {
            self.source(warp, Register { kind: Kind::Narrow, slot: *slot }, mask)?;
        }
        match multiply.a_type {
            Element::S8 | Element::U8 => multiply_integers(warp, multiply),
            Element::F16 | Element::Bf16 => multiply_floats(warp, multiply)?,
        }
        warp.pc += 1;
        Ok(())
    }
}

/// Where the elements of fragments are, for elements of which `per` are in a register: lane l has those of row l / 4 (and, in odd
/// registers of `a`, of the row 8 below), from column per · (l mod 4) on; pairs of registers of `a` and single ones of `b` go on
/// 4 · per columns further.
fn a_place(lane: usize, register: usize, element: usize, per: usize) -> (usize, usize) {
    (lane / 4 + 8 * (register % 2), per * (lane % 4) + element + 4 * per * (register / 2))
}

/// Row (depth) and column.
fn b_place(lane: usize, register: usize, element: usize, per: usize) -> (usize, usize) {
    (per * (lane % 4) + element + 4 * per * register, lane / 4)
}

/// Of accumulators: two columns in a lane, and the row 8 below in the second pair.
fn c_place(lane: usize, register: usize) -> (usize, usize) {
    (lane / 4 + 8 * (register / 2), 2 * (lane % 4) + register % 2)
}

/// The elements of fragments as matrices: `a` by rows, `b` by columns, both along the depth.
fn gather<T: Copy + Default>(
    warp: &Warp,
    multiply: &Multiply,
    per: usize,
    a_element: impl Fn(u32, usize) -> T,
    b_element: impl Fn(u32, usize) -> T,
) -> ([[T; 32]; 16], [[T; 32]; 8]) {
    let (mut a, mut b) = ([[T::default(); 32]; 16], [[T::default(); 32]; 8]);
    for (register, &slot) in multiply.a.iter().enumerate() {
        for (lane, &bits) in warp.registers.narrow(slot).iter().enumerate() {
            for element in 0..per {
                let (row, column) = a_place(lane, register, element, per);
                a[row][column] = a_element(bits, element);
            }
        }
    }
    for (register, &slot) in multiply.b.iter().enumerate() {
        for (lane, &bits) in warp.registers.narrow(slot).iter().enumerate() {
            for element in 0..per {
                let (row, column) = b_place(lane, register, element, per);
                b[column][row] = b_element(bits, element);
            }
        }
    }
    (a, b)
}

fn multiply_integers(warp: &mut Warp, multiply: &Multiply) {
    let element = |ty: Element| {
        move |bits: u32, element: usize| match ty {
            Element::S8 => i32::from(bits.to_le_bytes()[element] as i8),
            _ => i32::from(bits.to_le_bytes()[element]),
        }
    };
    let (a, b) = gather(warp, multiply, 4, element(multiply.a_type), element(multiply.b_type));
    let mut results = [[0; 32]; 4];
    for (register, &slot) in multiply.c.iter().enumerate() {
        let start = *warp.registers.narrow(slot);
        for lane in 0..32 {
            let (row, column) = c_place(lane, register);
            let products = a[row].iter().zip(&b[column]).map(|(a, b)| a * b);
            results[register][lane] = start[lane].wrapping_add(products.sum::<i32>() as u32);
        }
    }
    put(warp, multiply, &results);
}

/// The order and the width of a tensor core's sum differ between generations, so only a sum that is exact in f32, whatever its order,
/// has a result: one in which all partial sums of the magnitudes have few enough bits.
fn multiply_floats(warp: &mut Warp, multiply: &Multiply) -> Ran {
    let ty = multiply.a_type;
    let element = move |bits: u32, element: usize| {
        let half = (bits >> (16 * element)) as u16;
        if ty == Element::F16 { f16::from_bits(half).to_f64() } else { bf16::from_bits(half).to_f64() }
    };
    let (a, b) = gather(warp, multiply, 2, element, element);
    let mut results = [[0; 32]; 4];
    for (register, &slot) in multiply.c.iter().enumerate() {
        let start = *warp.registers.narrow(slot);
        for lane in 0..32 {
            let (row, column) = c_place(lane, register);
            let products = a[row].iter().zip(&b[column]).map(|(a, b)| a * b).take(multiply.k);
            let sum = exact_sum(f32::from_bits(start[lane]).into(), products);
            let inexact = FaultKind::InexactSum { row: row as u32, column: column as u32 };
            results[register][lane] = sum.ok_or_else(|| inexact.of(lane))?.to_bits();
        }
    }
    put(warp, multiply, &results);
    Ok(())
}

fn put(warp: &mut Warp, multiply: &Multiply, results: &[Lanes<u32>; 4]) {
    for (&slot, values) in multiply.d.iter().zip(results) {
        warp.registers.set_narrow(slot, values, u32::MAX);
    }
}

/// The sum, if every term is a multiple of some power of two of which the sum of all magnitudes is less than 2²⁴ multiples: then no
/// order of additions in f32 rounds.
fn exact_sum(start: f64, products: impl Iterator<Item = f64>) -> Option<f32> {
    let (mut sum, mut magnitude, mut unit) = (start, start.abs(), lowest_bit(start));
    for product in products {
        sum += product;
        magnitude += product.abs();
        unit = unit.min(lowest_bit(product));
    }
    match magnitude == 0.0 || (unit >= -149 && magnitude / 2f64.powi(unit) <= 16_777_216.0) {
        // Zeros add to +0, unless all are -0, which products here are not together with.
        true => Some(if sum == 0.0 { 0.0 } else { sum as f32 }),
        false => None,
    }
}

/// The exponent of the lowest bit that is set.
fn lowest_bit(value: f64) -> i32 {
    if value == 0.0 {
        return i32::MAX;
    }
    let bits = value.to_bits();
    let exponent = (bits >> 52 & 0x7ff) as i32 - 1075;
    exponent + ((bits & ((1 << 52) - 1)) | 1 << 52).trailing_zeros() as i32
}
