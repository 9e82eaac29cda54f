//! Instructions that compute a register from registers, lane by lane, as a table by name.

use std::{collections::HashMap, fmt, sync::LazyLock};

use super::{
    registers::{Kind, Lane, Lanes, Registers, Slot},
    tables,
};

/// The destination, and the sources behind it.
pub(crate) type Slots = [Slot; 5];

/// Computes the lanes of a mask. False if a source was not written in one of them.
pub(crate) type Run = dyn Fn(&mut Registers, &Slots, u32) -> bool + Send + Sync;

/// An instruction over registers.
pub(crate) struct Compute {
    pub(crate) result: Kind,
    pub(crate) sources: Vec<Kind>,
    pub(crate) run: Box<Run>,
}

impl fmt::Debug for Compute {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} -> {:?}", self.sources, self.result)
    }
}

/// The instruction of a name, which has no modifiers that do not matter.
pub(crate) fn compute(name: &str) -> Option<&'static Compute> {
    static TABLE: LazyLock<Table> = LazyLock::new(|| {
        let mut table = Table::default();
        tables::fill(&mut table);
        table
    });
    TABLE.entries.get(name)
}

/// Instructions by name.
#[derive(Default)]
pub(crate) struct Table {
    entries: HashMap<String, Compute>,
}

impl Table {
    fn add(&mut self, name: String, result: Kind, sources: Vec<Kind>, run: Box<Run>) {
        let before = self.entries.insert(name.clone(), Compute { result, sources, run });
        assert!(before.is_none(), "{name} is in the table twice");
    }

    pub(crate) fn unary<A: Lane, D: Lane>(
        &mut self,
        name: impl Into<String>,
        function: impl Fn(A) -> D + Send + Sync + 'static,
    ) {
        let run = move |registers: &mut Registers, slots: &Slots, mask: u32| {
            let a = A::read(registers, slots[1]);
            let values = std::array::from_fn(|lane| function(a[lane]));
            D::write(registers, slots[0], &values, mask);
            mask & !registers.written(A::KIND, slots[1]) == 0
        };
        self.add(name.into(), D::KIND, vec![A::KIND], Box::new(run));
    }

    pub(crate) fn binary<A: Lane, B: Lane, D: Lane>(
        &mut self,
        name: impl Into<String>,
        function: impl Fn(A, B) -> D + Send + Sync + 'static,
    ) {
        let run = move |registers: &mut Registers, slots: &Slots, mask: u32| {
            let (a, b) = (A::read(registers, slots[1]), B::read(registers, slots[2]));
            let written = registers.written(A::KIND, slots[1]) & registers.written(B::KIND, slots[2]);
            let values = std::array::from_fn(|lane| function(a[lane], b[lane]));
            D::write(registers, slots[0], &values, mask);
            mask & !written == 0
        };
        self.add(name.into(), D::KIND, vec![A::KIND, B::KIND], Box::new(run));
    }

    pub(crate) fn ternary<A: Lane, B: Lane, C: Lane, D: Lane>(
        &mut self,
        name: impl Into<String>,
        function: impl Fn(A, B, C) -> D + Send + Sync + 'static,
    ) {
        self.ternary_lanes(name, move |a, b, c| {
            std::array::from_fn(|lane| function(a[lane], b[lane], c[lane]))
        });
    }

    /// Of all lanes at once.
    pub(crate) fn ternary_lanes<A: Lane, B: Lane, C: Lane, D: Lane>(
        &mut self,
        name: impl Into<String>,
        function: impl Fn(&Lanes<A>, &Lanes<B>, &Lanes<C>) -> Lanes<D> + Send + Sync + 'static,
    ) {
        let run = move |registers: &mut Registers, slots: &Slots, mask: u32| {
            let (a, b) = (A::read(registers, slots[1]), B::read(registers, slots[2]));
            let c = C::read(registers, slots[3]);
            let written = registers.written(A::KIND, slots[1]) & registers.written(B::KIND, slots[2]);
            let written = written & registers.written(C::KIND, slots[3]);
            D::write(registers, slots[0], &function(&a, &b, &c), mask);
            mask & !written == 0
        };
        self.add(name.into(), D::KIND, vec![A::KIND, B::KIND, C::KIND], Box::new(run));
    }

    pub(crate) fn quaternary<A: Lane, B: Lane, C: Lane, E: Lane, D: Lane>(
        &mut self,
        name: impl Into<String>,
        function: impl Fn(A, B, C, E) -> D + Send + Sync + 'static,
    ) {
        let run = move |registers: &mut Registers, slots: &Slots, mask: u32| {
            let (a, b) = (A::read(registers, slots[1]), B::read(registers, slots[2]));
            let (c, e) = (C::read(registers, slots[3]), E::read(registers, slots[4]));
            let written = registers.written(A::KIND, slots[1]) & registers.written(B::KIND, slots[2]);
            let written =
                written & registers.written(C::KIND, slots[3]) & registers.written(E::KIND, slots[4]);
            let values: Lanes<D> = std::array::from_fn(|lane| function(a[lane], b[lane], c[lane], e[lane]));
            D::write(registers, slots[0], &values, mask);
            mask & !written == 0
        };
        self.add(name.into(), D::KIND, vec![A::KIND, B::KIND, C::KIND, E::KIND], Box::new(run));
    }
}
