//! What each instruction computes, as the PTX manual says it.

mod bits;
mod compare;
mod convert;
mod float;
mod half_floats;
mod integer;
mod moves;

use super::compute::Table;

pub(super) fn fill(table: &mut Table) {
    integer::fill(table);
    bits::fill(table);
    float::fill(table);
    half_floats::fill(table);
    compare::fill(table);
    convert::fill(table);
    moves::fill(table);
}
