use std::{fmt, sync::Arc};

use samebits_tensor::HostTensor;

use crate::{NeuronError, cores::Core, runtime::TensorHandle};

/// A tensor in the memory of a core.
pub struct Tensor {
    pub(crate) core: Arc<Core>,
    /// A tensor without bytes has no memory.
    pub(crate) handle: Option<TensorHandle>,
    pub(crate) bytes: usize,
}

impl Tensor {
    pub(crate) fn allocate(core: &Arc<Core>, bytes: usize) -> Result<Self, NeuronError> {
        let handle = (bytes > 0).then(|| core.allocate(bytes)).transpose()?;
        Ok(Tensor { core: core.clone(), handle, bytes })
    }

    pub(crate) fn place(core: &Arc<Core>, value: HostTensor) -> Result<Self, NeuronError> {
        let tensor = Tensor::allocate(core, value.bytes().len())?;
        if let Some(handle) = tensor.handle {
            // SAFETY: the tensor is kept until the call has returned.
            core.call(move |runtime| unsafe { runtime.write(handle, value.bytes()) })?;
        }
        Ok(tensor)
    }

    pub(crate) fn copy(&self) -> Result<Self, NeuronError> {
        let copy = Tensor::allocate(&self.core, self.bytes)?;
        if let (Some(from), Some(to)) = (self.handle, copy.handle) {
            let mut bytes = vec![0; self.bytes];
            // SAFETY: both tensors are kept until the call has returned.
            self.core.call(move |runtime| unsafe {
                runtime.read(from, &mut bytes)?;
                runtime.write(to, &bytes)
            })?;
        }
        Ok(copy)
    }

    pub(crate) fn fetch(&self, out: &mut [u8]) -> Result<(), NeuronError> {
        if out.len() != self.bytes {
            let what = format!("{} bytes for a tensor of {}", out.len(), self.bytes);
            return Err(NeuronError::Argument { index: 0, what });
        }
        let Some(handle) = self.handle else { return Ok(()) };
        let mut bytes = vec![0; self.bytes];
        let bytes = self.core.call(move |runtime| {
            // SAFETY: the tensor is kept until the call has returned.
            unsafe { runtime.read(handle, &mut bytes) }.map(|()| bytes)
        })?;
        out.copy_from_slice(&bytes);
        Ok(())
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        if let Some(handle) = self.handle {
            // SAFETY: the tensor is there and not used again: whatever used it has ended.
            unsafe { self.core.release(handle, self.bytes) };
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} bytes on core {})", self.bytes, self.core.index)
    }
}
