//! Matrices in fragments over the lanes of a warp: `ldmatrix`, `stmatrix` and `mma.sync`.

use half::{bf16, f16};

use super::{
    Ran,
    block::Block,
    registers::{Kind, Lanes, Slot},
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
            let rows: [u64; 8] = std::array::from_fn(|row| rows[8 * index + row]);
            match matrix.store {
                true => self.store_matrix(warp, &rows, register, matrix.transposed)?,
                false => {
                    self.note_rows(warp, &rows, index)?;
                    let values = self.read_matrix(&rows, matrix.transposed);
                    warp.registers.set_narrow(register, &values, mask);
                }
            }
        }
        warp.pc += 1;
        Ok(())
    }

    /// Four lanes read a row: one of them that did not give its address stands for all.
    fn note_rows(&mut self, warp: &Warp, rows: &[u64; 8], matrix: usize) -> Ran {
        for (row, &at) in rows.iter().enumerate() {
            let lane = 4 * row + usize::from(4 * row == 8 * matrix + row);
            let thread = warp.index * 32 + lane as u32;
            self.shared.note(at, 16, thread, Use::Read, false).map_err(|kind| kind.of(lane))?;
        }
        Ok(())
    }

    fn read_matrix(&self, rows: &[u64; 8], transposed: bool) -> Lanes<u32> {
        let words = rows.map(|at| [self.shared.read::<8>(at), self.shared.read::<8>(at + 8)]);
        let element =
            |row: usize, column: usize| (words[row][column / 4] >> (16 * (column % 4))) as u32 & 0xffff;
        std::array::from_fn(|lane| {
            let [low, high] = [0, 1].map(|half| fragment(lane, half, transposed));
            element(low.0, low.1) | element(high.0, high.1) << 16
        })
    }

    fn store_matrix(&mut self, warp: &Warp, rows: &[u64; 8], register: Slot, transposed: bool) -> Ran {
        self.source(warp, Register { kind: Kind::Narrow, slot: register }, u32::MAX)?;
        for (lane, &value) in warp.registers.narrow(register).iter().enumerate() {
            for half in 0..2 {
                let (row, column) = fragment(lane, half, transposed);
                let (at, thread) = (rows[row] + 2 * column as u64, warp.index * 32 + lane as u32);
                self.shared.note(at, 2, thread, Use::Write, false).map_err(|kind| kind.of(lane))?;
                self.shared.write::<2>(at, (value >> (16 * half)).into());
            }
        }
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

/// Row and column of a half of a lane's register.
fn fragment(lane: usize, half: usize, transposed: bool) -> (usize, usize) {
    let (row, column) = (lane / 4, 2 * (lane % 4) + half);
    if transposed { (column, row) } else { (row, column) }
}

/// Rows of `a` and columns of `b` along the depth, as registers: elements of 8 or 16 bits beside each other.
struct Operands {
    a: [[u32; 8]; 16],
    b: [[u32; 8]; 8],
}

/// Lane l has of each row or column l / 4 the register l mod 4. Odd registers of `a` are of the row 8 below; pairs of registers of `a`
/// and single ones of `b` go on 4 registers further.
fn gather(warp: &Warp, multiply: &Multiply) -> Operands {
    let mut operands = Operands { a: [[0; 8]; 16], b: [[0; 8]; 8] };
    for (register, &slot) in multiply.a.iter().enumerate() {
        for (lane, &bits) in warp.registers.narrow(slot).iter().enumerate() {
            operands.a[lane / 4 + 8 * (register % 2)][lane % 4 + 4 * (register / 2)] = bits;
        }
    }
    for (register, &slot) in multiply.b.iter().enumerate() {
        for (lane, &bits) in warp.registers.narrow(slot).iter().enumerate() {
            operands.b[lane / 4][lane % 4 + 4 * register] = bits;
        }
    }
    operands
}

/// Of accumulators: two columns in a lane, and the row 8 below in the second pair.
fn place(lane: usize, register: usize) -> (usize, usize) {
    (lane / 4 + 8 * (register / 2), 2 * (lane % 4) + register % 2)
}

/// Elements of 8 bits.
fn bytes(registers: &[u32; 8], ty: Element) -> [i16; 32] {
    std::array::from_fn(|index| {
        let byte = (registers[index / 4] >> (8 * (index % 4))) as u8;
        if ty == Element::S8 { i16::from(byte as i8) } else { i16::from(byte) }
    })
}

fn multiply_integers(warp: &mut Warp, multiply: &Multiply) {
    let operands = gather(warp, multiply);
    let a = operands.a.map(|row| bytes(&row, multiply.a_type));
    let b = operands.b.map(|column| bytes(&column, multiply.b_type));
    let mut results = [[0; 32]; 4];
    for (register, &slot) in multiply.c.iter().enumerate() {
        let start = *warp.registers.narrow(slot);
        for lane in 0..32 {
            let (row, column) = place(lane, register);
            let products = a[row].iter().zip(&b[column]).map(|(&a, &b)| i32::from(a) * i32::from(b));
            results[register][lane] = start[lane].wrapping_add(products.sum::<i32>() as u32);
        }
    }
    put(warp, multiply, &results);
}

/// A row or a column of floats, all multiples of 2 to the power of `unit`.
struct Floats {
    values: [f64; 16],
    unit: i32,
}

fn floats(registers: &[u32; 8], ty: Element) -> Floats {
    let value = |index: usize| {
        let half = (registers[index / 2] >> (16 * (index % 2))) as u16;
        if ty == Element::F16 { f16::from_bits(half).to_f64() } else { bf16::from_bits(half).to_f64() }
    };
    let values = std::array::from_fn(value);
    Floats { values, unit: values.iter().map(|&value| lowest_bit(value)).min().unwrap_or(NO_BITS) }
}

/// The order and the width of a tensor core's sum differ between generations, so only a sum that is exact in f32, whatever its order,
/// has a result: one in which all partial sums of the magnitudes have few enough bits.
fn multiply_floats(warp: &mut Warp, multiply: &Multiply) -> Ran {
    let operands = gather(warp, multiply);
    let a = operands.a.map(|row| floats(&row, multiply.a_type));
    let b = operands.b.map(|column| floats(&column, multiply.b_type));
    let mut results = [[0; 32]; 4];
    for (register, &slot) in multiply.c.iter().enumerate() {
        let start = *warp.registers.narrow(slot);
        for lane in 0..32 {
            let (row, column) = place(lane, register);
            let sum = exact_sum(f32::from_bits(start[lane]).into(), &a[row], &b[column]);
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

/// The sum, if every term is a multiple of some power of two of which the sum of all magnitudes is at most 2²⁴ multiples: then no
/// order of additions in f32 rounds.
fn exact_sum(start: f64, a: &Floats, b: &Floats) -> Option<f32> {
    let (mut sum, mut magnitude) = (start, start.abs());
    for (a, b) in a.values.iter().zip(&b.values) {
        sum += a * b;
        magnitude += (a * b).abs();
    }
    if magnitude == 0.0 {
        return Some(0.0);
    }
    let fits = |unit: i32| unit >= -149 && magnitude / 2f64.powi(unit) <= 16_777_216.0;
    // The unit of a row and a column is at most that of their products, which takes longer to find.
    let products = || a.values.iter().zip(&b.values).map(|(a, b)| lowest_bit(a * b)).min().unwrap_or(NO_BITS);
    let exact =
        fits(lowest_bit(start).min(a.unit.saturating_add(b.unit))) || fits(lowest_bit(start).min(products()));
    exact.then_some(sum as f32).filter(|sum| sum.is_finite())
}

/// Of zero: above what any other value has, and no overflow when two are added.
const NO_BITS: i32 = 1 << 20;

/// The exponent of the lowest bit that is set.
fn lowest_bit(value: f64) -> i32 {
    if value == 0.0 {
        return NO_BITS;
    }
    let bits = value.to_bits();
    let exponent = (bits >> 52 & 0x7ff) as i32 - 1075;
    exponent + ((bits & ((1 << 52) - 1)) | 1 << 52).trailing_zeros() as i32
}
