//! The registers of a warp, each with the values of its 32 lanes side by side, and types of lanes over them.

use half::{bf16, f16};

/// What a register holds in each lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// One bit.
    Pred,
    /// Up to 32 bits.
    Narrow,
    /// 64 bits.
    Wide,
}

/// A register's number among those of its kind.
pub(crate) type Slot = u32;

/// One for each lane.
pub(crate) type Lanes<T> = [T; 32];

/// How many registers of each kind a kernel has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) preds: u32,
    pub(crate) narrow: u32,
    pub(crate) wide: u32,
}

impl Counts {
    /// The next register of a kind.
    pub(crate) fn take(&mut self, kind: Kind) -> Slot {
        let count = match kind {
            Kind::Pred => &mut self.preds,
            Kind::Narrow => &mut self.narrow,
            Kind::Wide => &mut self.wide,
        };
        *count += 1;
        *count - 1
    }
}

/// Registers, and which lanes of each were written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registers {
    preds: Vec<u32>,
    narrow: Vec<Lanes<u32>>,
    wide: Vec<Lanes<u64>>,
    written: [Vec<u32>; 3],
    kept: [Vec<u32>; 3],
}

impl Registers {
    pub(crate) fn new(counts: Counts) -> Self {
        let written = [counts.preds, counts.narrow, counts.wide].map(|count| vec![0; count as usize]);
        Registers {
            preds: vec![0; counts.preds as usize],
            narrow: vec![[0; 32]; counts.narrow as usize],
            wide: vec![[0; 32]; counts.wide as usize],
            kept: written.clone(),
            written,
        }
    }

    /// What is written until now stays so in every block.
    pub(crate) fn keep(&mut self) {
        self.kept = self.written.clone();
    }

    /// Forgets what was written but what is kept.
    pub(crate) fn clear(&mut self) {
        for (written, kept) in self.written.iter_mut().zip(&self.kept) {
            written.copy_from_slice(kept);
        }
    }

    /// The lanes in which a register was written.
    #[inline]
    pub(crate) fn written(&self, kind: Kind, slot: Slot) -> u32 {
        self.written[kind as usize][slot as usize]
    }

    #[inline]
    pub(crate) fn pred(&self, slot: Slot) -> u32 {
        self.preds[slot as usize]
    }

    #[inline]
    pub(crate) fn set_pred(&mut self, slot: Slot, values: u32, mask: u32) {
        let pred = &mut self.preds[slot as usize];
        *pred = *pred & !mask | values & mask;
        self.written[0][slot as usize] |= mask;
    }

    #[inline]
    pub(crate) fn narrow(&self, slot: Slot) -> &Lanes<u32> {
        &self.narrow[slot as usize]
    }

    #[inline]
    pub(crate) fn wide(&self, slot: Slot) -> &Lanes<u64> {
        &self.wide[slot as usize]
    }

    #[inline]
    pub(crate) fn set_narrow(&mut self, slot: Slot, values: &Lanes<u32>, mask: u32) {
        blend(&mut self.narrow[slot as usize], values, mask);
        self.written[1][slot as usize] |= mask;
    }

    #[inline]
    pub(crate) fn set_wide(&mut self, slot: Slot, values: &Lanes<u64>, mask: u32) {
        blend(&mut self.wide[slot as usize], values, mask);
        self.written[2][slot as usize] |= mask;
    }

    /// A register as 64 bits, whatever its kind.
    pub(crate) fn bits(&self, kind: Kind, slot: Slot) -> Lanes<u64> {
        match kind {
            Kind::Pred => {
                let pred = self.pred(slot);
                std::array::from_fn(|lane| u64::from(pred >> lane & 1))
            }
            Kind::Narrow => self.narrow(slot).map(u64::from),
            Kind::Wide => *self.wide(slot),
        }
    }

    /// Writes the low bits that a register of this kind has.
    pub(crate) fn set_bits(&mut self, kind: Kind, slot: Slot, values: &Lanes<u64>, mask: u32) {
        match kind {
            Kind::Pred => {
                let bits = (0..32).fold(0, |bits, lane| bits | ((values[lane] & 1) as u32) << lane);
                self.set_pred(slot, bits, mask);
            }
            Kind::Narrow => self.set_narrow(slot, &values.map(|value| value as u32), mask),
            Kind::Wide => self.set_wide(slot, values, mask),
        }
    }
}

#[inline]
fn blend<T: Copy>(register: &mut Lanes<T>, values: &Lanes<T>, mask: u32) {
    if mask == u32::MAX {
        *register = *values;
        return;
    }
    for lane in 0..32 {
        if mask >> lane & 1 != 0 {
            register[lane] = values[lane];
        }
    }
}

/// A type of values, as instructions take them from registers and put them there.
pub(crate) trait Lane: Copy + 'static {
    /// The registers that hold it.
    const KIND: Kind;

    fn read(registers: &Registers, slot: Slot) -> Lanes<Self>;

    fn write(registers: &mut Registers, slot: Slot, values: &Lanes<Self>, mask: u32);
}

impl Lane for bool {
    const KIND: Kind = Kind::Pred;

    #[inline]
    fn read(registers: &Registers, slot: Slot) -> Lanes<bool> {
        let pred = registers.pred(slot);
        std::array::from_fn(|lane| pred >> lane & 1 != 0)
    }

    #[inline]
    fn write(registers: &mut Registers, slot: Slot, values: &Lanes<bool>, mask: u32) {
        let mut bits = 0;
        for (lane, &value) in values.iter().enumerate() {
            bits |= u32::from(value) << lane;
        }
        registers.set_pred(slot, bits, mask);
    }
}

macro_rules! lane {
    ($kind:ident, $read:ident, $write:ident, $($type:ty: $from:expr, $to:expr;)*) => {$(
        impl Lane for $type {
            const KIND: Kind = Kind::$kind;

            #[inline]
            fn read(registers: &Registers, slot: Slot) -> Lanes<$type> {
                registers.$read(slot).map($from)
            }

            #[inline]
            fn write(registers: &mut Registers, slot: Slot, values: &Lanes<$type>, mask: u32) {
                registers.$write(slot, &values.map($to), mask);
            }
        }
    )*};
}

// Signed values of 8 and 16 bits are extended over the 32 bits of a register, as the manual has it for wider registers.
lane! {
    Narrow, narrow, set_narrow,
    u32: |bits| bits, |value| value;
    i32: |bits| bits as i32, |value| value as u32;
    f32: f32::from_bits, f32::to_bits;
    u16: |bits| bits as u16, u32::from;
    i16: |bits| bits as i16, |value| value as u32;
    u8: |bits| bits as u8, u32::from;
    i8: |bits| bits as i8, |value| value as u32;
    f16: |bits| f16::from_bits(bits as u16), |value| u32::from(value.to_bits());
    bf16: |bits| bf16::from_bits(bits as u16), |value| u32::from(value.to_bits());
}

lane! {
    Wide, wide, set_wide,
    u64: |bits| bits, |value| value;
    i64: |bits| bits as i64, |value| value as u64;
    f64: f64::from_bits, f64::to_bits;
}
