use std::{
    collections::HashMap,
    ffi::{c_char, c_int, c_void},
    slice,
    sync::{Arc, Mutex, PoisonError},
};

use samebits_neuron::abi::{self, PLACEMENT_DEVICE, PLACEMENT_HOST, Status};

use crate::{
    Done, call, put,
    state::{State, Tensor, number, pointer},
    text,
};

impl Tensor {
    pub(crate) fn read(&self) -> Vec<u8> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory[self.start..self.start + self.bytes].to_vec()
    }

    /// Replaces bytes from `start` on, which are within the tensor.
    pub(crate) fn write(&self, start: usize, bytes: &[u8]) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory[self.start + start..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Fills it with NaN.
    pub(crate) fn spoil(&self) {
        self.write(0, &vec![0xFF; self.bytes]);
    }

    fn holds(&self, offset: usize, size: usize) -> bool {
        offset.checked_add(size).is_some_and(|end| end <= self.bytes)
    }
}

/// Allocates memory, filled with 0xFF.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_tensor_allocate(
    placement: i32,
    core: c_int,
    size: usize,
    name: *const c_char,
    tensor: *mut *mut abi::Tensor,
) -> i32 {
    call("nrt_tensor_allocate", |state| {
        // SAFETY: text of the caller.
        unsafe { text(name) }?;
        let core = u32::try_from(core).map_err(|_| Status::Invalid)?;
        state.check_core(core)?;
        if !matches!(placement, PLACEMENT_DEVICE | PLACEMENT_HOST) || size == 0 {
            return Err(state.misuse("nrt_tensor_allocate: arguments", Status::Invalid));
        }
        let is_charged = placement == PLACEMENT_DEVICE;
        if is_charged && state.used(core).saturating_add(size as u64) > state.bytes_limit {
            return Err(Status::Resource);
        }
        let memory = Arc::new(Mutex::new(vec![0xFF; size]));
        let number = keep(state, Tensor { memory, start: 0, bytes: size, core, is_charged });
        // SAFETY: a pointer of the caller.
        unsafe { put(tensor, pointer(number)) }
    })
}

/// A part of a tensor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_tensor_allocate_slice(
    source: *const abi::Tensor,
    offset: usize,
    size: usize,
    name: *const c_char,
    part: *mut *mut abi::Tensor,
) -> i32 {
    call("nrt_tensor_allocate_slice", |state| {
        // SAFETY: text of the caller.
        unsafe { text(name) }?;
        let source = state.tensor(number(source))?;
        if !source.holds(offset, size) || size == 0 {
            return Err(state.misuse("nrt_tensor_allocate_slice: beyond the tensor", Status::Invalid));
        }
        let start = source.start + offset;
        let number = keep(state, Tensor { start, bytes: size, is_charged: false, ..source });
        // SAFETY: a pointer of the caller.
        unsafe { put(part, pointer(number)) }
    })
}

fn keep(state: &mut State, tensor: Tensor) -> usize {
    let number = state.fresh();
    state.tensors.insert(number, tensor);
    number
}

/// Frees a tensor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_tensor_free(tensor: *mut *mut abi::Tensor) {
    call("nrt_tensor_free", |state| {
        // SAFETY: a pointer of the caller.
        let number = unsafe { taken(tensor) }?;
        match state.tensors.remove(&number) {
            Some(_) => Ok(()),
            None => Err(state.misuse("nrt_tensor_free: freed before", Status::InvalidHandle)),
        }
    });
}

/// The object that a pointer leads to, which leads nowhere afterwards.
///
/// # Safety
/// `place` must be null or a place for a pointer.
unsafe fn taken<T>(place: *mut *mut T) -> Done<usize> {
    if place.is_null() {
        return Err(Status::Invalid);
    }
    // SAFETY: by the contract above.
    Ok(number(unsafe { place.replace(std::ptr::null_mut()) }))
}

/// Copies from a tensor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_tensor_read(
    tensor: *const abi::Tensor,
    target: *mut c_void,
    offset: usize,
    size: usize,
) -> i32 {
    call("nrt_tensor_read", |state| {
        let tensor = state.tensor(number(tensor))?;
        state.check_core(tensor.core)?;
        if target.is_null() || !tensor.holds(offset, size) {
            return Err(state.misuse("nrt_tensor_read: beyond the tensor", Status::Invalid));
        }
        // SAFETY: bytes of the caller, as many as told.
        let target = unsafe { slice::from_raw_parts_mut(target.cast::<u8>(), size) };
        target.copy_from_slice(&tensor.read()[offset..offset + size]);
        Ok(())
    })
}

/// Copies to a tensor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_tensor_write(
    tensor: *mut abi::Tensor,
    source: *const c_void,
    offset: usize,
    size: usize,
) -> i32 {
    call("nrt_tensor_write", |state| {
        let tensor = state.tensor(number(tensor))?;
        state.check_core(tensor.core)?;
        if source.is_null() || !tensor.holds(offset, size) {
            return Err(state.misuse("nrt_tensor_write: beyond the tensor", Status::Invalid));
        }
        // SAFETY: bytes of the caller, as many as told.
        tensor.write(offset, unsafe { slice::from_raw_parts(source.cast::<u8>(), size) });
        Ok(())
    })
}

/// Bytes of a tensor; 0 of none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_tensor_get_size(tensor: *const abi::Tensor) -> usize {
    let mut size = 0;
    call("nrt_tensor_get_size", |state| {
        size = state.tensor(number(tensor))?.bytes;
        Ok(())
    });
    size
}

/// Makes an empty set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_allocate_tensor_set(set: *mut *mut abi::TensorSet) -> i32 {
    call("nrt_allocate_tensor_set", |state| {
        let number = state.fresh();
        state.sets.insert(number, HashMap::new());
        // SAFETY: a pointer of the caller.
        unsafe { put(set, pointer(number)) }
    })
}

/// Frees a set; its tensors stay.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_destroy_tensor_set(set: *mut *mut abi::TensorSet) {
    call("nrt_destroy_tensor_set", |state| {
        // SAFETY: a pointer of the caller.
        let number = unsafe { taken(set) }?;
        match state.sets.remove(&number) {
            Some(_) => Ok(()),
            None => Err(state.misuse("nrt_destroy_tensor_set: freed before", Status::InvalidHandle)),
        }
    });
}

/// Binds a tensor to a name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_add_tensor_to_tensor_set(
    set: *mut abi::TensorSet,
    name: *const c_char,
    tensor: *mut abi::Tensor,
) -> i32 {
    call("nrt_add_tensor_to_tensor_set", |state| {
        // SAFETY: text of the caller.
        let name = unsafe { text(name) }?;
        state.tensor(number(tensor))?;
        state.set(number(set))?;
        let bound = state.sets.get_mut(&number(set)).and_then(|set| set.insert(name, number(tensor)));
        match bound {
            None => Ok(()),
            Some(_) => Err(state.misuse("nrt_add_tensor_to_tensor_set: a name twice", Status::Invalid)),
        }
    })
}
