use samebits_tensor::{HostWeight, PlainWeight, Result};

use crate::Cuda;

/// A weight on the device: the integers and scales of its blocks, a byte for each integer.
#[derive(Clone)]
pub struct PackedWeight {
    plain: PlainWeight<Cuda>,
}

impl PackedWeight {
    pub(crate) fn pack(cuda: &Cuda, weight: &HostWeight) -> Result<Self> {
        Ok(PackedWeight { plain: PlainWeight::unpack(cuda, weight)? })
    }

    pub(crate) fn plain(&self) -> &PlainWeight<Cuda> {
        &self.plain
    }
}
