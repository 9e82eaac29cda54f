//! Generic addresses: those of global memory are themselves, the others are in windows far above.

/// Where each window begins.
pub(crate) const SHARED: u64 = 1 << 60;
pub(crate) const LOCAL: u64 = 2 << 60;
pub(crate) const PARAM: u64 = 3 << 60;

/// The window of an address, 0 for global memory.
pub(crate) fn window(address: u64) -> u64 {
    address & 0xf << 60
}
