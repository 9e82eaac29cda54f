use std::fmt;

use crate::{Client, ElementType, PjrtError, Signature, event::Event, ffi};

/// A tensor in the memory of a device, row-major to whoever uploads or downloads it.
///
/// It may be the result of work that has not ended; whatever uses it waits for that by itself.
pub struct Buffer {
    client: Client,
    raw: *mut ffi::Buffer,
    signature: Signature,
    device: usize,
}

// SAFETY: the PJRT API lets any thread use a buffer, and several at once.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Takes over a buffer.
    ///
    /// # Safety
    /// `raw` must be a buffer of the client that nobody else destroys, of this signature and on this device.
    pub(crate) unsafe fn new(
        client: Client,
        raw: *mut ffi::Buffer,
        signature: Signature,
        device: usize,
    ) -> Self {
        Buffer { client, raw, signature, device }
    }

    /// Type of the elements.
    pub fn element(&self) -> ElementType {
        self.signature.element
    }

    /// The dimensions, the slowest first.
    pub fn dims(&self) -> &[usize] {
        &self.signature.dims
    }

    /// Element type and dimensions.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Bytes of the tensor as it is downloaded.
    pub fn bytes(&self) -> usize {
        self.signature.bytes()
    }

    /// Its device, by the place in [`Client::devices`].
    pub fn device(&self) -> usize {
        self.device
    }

    /// The client of that device.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Copies the tensor to `target`, row-major, once the work that makes it has ended.
    ///
    /// # Errors
    /// If `target` has another length than [`bytes`](Self::bytes), or the work or the copy failed.
    pub fn download(&self, target: &mut [u8]) -> Result<(), PjrtError> {
        self.signature.check_bytes("download", target.len())?;
        let minor_to_major: Vec<i64> = (0..self.dims().len() as i64).rev().collect();
        let mut layout = ffi::Roomy::new(ffi::TiledLayout {
            struct_size: self.client.api().size(ffi::TiledLayout::size_in),
            // That of `PJRT_Buffer_MemoryLayout_Tiled`, which is all of it but the head and the kind.
            tiled_size: size_of::<ffi::TiledLayout>() - 24,
            minor_to_major: minor_to_major.as_ptr(),
            minor_to_major_size: minor_to_major.len(),
            ..Default::default()
        });
        let arguments = ffi::BufferToHost {
            buffer: self.raw,
            layout: &raw mut layout.value,
            data: target.as_mut_ptr().cast(),
            size: target.len(),
            ..Default::default()
        };
        // SAFETY: the buffer is alive, the layout until the call ends, and `target` until the event below has come.
        let event = unsafe { self.client.api().call(arguments) }?.event;
        // SAFETY: the event is new, and nobody else's.
        unsafe { Event::new(self.client.clone(), event) }.wait()
    }

    /// The tensor's bytes, row-major: [`download`](Self::download) to a new vector.
    ///
    /// # Errors
    /// If the work or the copy failed.
    pub fn to_vec(&self) -> Result<Vec<u8>, PjrtError> {
        let mut bytes = vec![0; self.bytes()];
        self.download(&mut bytes)?;
        Ok(bytes)
    }

    /// The end of the work that makes the tensor.
    ///
    /// # Errors
    /// If the plugin fails to tell.
    pub fn ready(&self) -> Result<Event, PjrtError> {
        let arguments = ffi::BufferReadyEvent { buffer: self.raw, ..Default::default() };
        // SAFETY: the buffer is alive, and the event new.
        unsafe {
            let event = self.client.api().call(arguments)?.event;
            Ok(Event::new(self.client.clone(), event))
        }
    }

    /// Whether its memory has been given up, which happens to buffers of a device that failed.
    ///
    /// # Errors
    /// If the plugin fails to tell.
    pub fn is_deleted(&self) -> Result<bool, PjrtError> {
        let arguments = ffi::BufferIsDeleted { buffer: self.raw, ..Default::default() };
        // SAFETY: the buffer is alive.
        Ok(unsafe { self.client.api().call(arguments) }?.is_deleted[0] != 0)
    }

    pub(crate) fn raw(&self) -> *mut ffi::Buffer {
        self.raw
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let arguments = ffi::BufferDestroy { buffer: self.raw, ..Default::default() };
        // SAFETY: the buffer is alive and not used again; work that reads it holds its memory. A failure leaves nothing
        // to do.
        let _ = unsafe { self.client.api().call(arguments) };
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} on device {})", self.signature, self.device)
    }
}
