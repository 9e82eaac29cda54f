//! The part of the PJRT C API that is used here: argument structures, the table of functions, and how one is called.
//!
//! Facts are from `pjrt_c_api.h` of OpenXLA (versions 0.81 and 0.114) and its change log. A structure starts with its
//! size and a chain of extensions, which is not used here; a function takes a pointer to one structure, writes its
//! results there, and returns an error object or null.

use std::{
    ffi::{c_char, c_void},
    mem, ptr, slice,
};

use crate::{
    PjrtError,
    error::{Code, printable},
};

/// The oldest minor version whose table has the order of functions and the structures below.
pub(crate) const OLDEST_MINOR: i32 = 64;
/// The newest minor version whose structures are known.
const NEWEST_MINOR: i32 = 114;
/// Bytes of `PJRT_Api` before its functions: its size, extensions, and a `PJRT_Api_Version` of 24 bytes.
const TABLE_OFFSET: usize = 40;

/// A C `int` or enum with the four bytes of padding that follow it.
pub(crate) type Int = [i32; 2];
/// A C `bool` with the seven bytes of padding that follow it.
pub(crate) type Flag = [u8; 8];

/// The head of `PJRT_Api`; the functions follow, as many as `struct_size` has room for.
#[repr(C)]
struct ApiHead {
    struct_size: usize,
    extensions: *const c_void,
    version_size: usize,
    version_extensions: *const c_void,
    major: i32,
    minor: i32,
}

/// A plugin's table of functions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Api(ptr::NonNull<ApiHead>);

// SAFETY: the table is constant memory of a library that is never unloaded.
unsafe impl Send for Api {}
// SAFETY: as above.
unsafe impl Sync for Api {}

/// A function of the table and its argument structure.
///
/// # Safety
/// The structure must be laid out as the C header has it, start with its size, and be valid when zeroed; `SLOT` must be
/// the place of its function.
pub(crate) unsafe trait Arguments: Sized {
    /// The C function.
    const FUNCTION: &'static str;
    /// Its place in the table.
    const SLOT: usize;
    /// Bytes of the structure in a minor version.
    fn known_size(minor: i32) -> usize;
    /// Where its size is told.
    fn struct_size(&mut self) -> &mut usize;
}

/// A structure with zeroed room behind it, for the fields of versions that are newer than this text: zero is the
/// default of every field that has been added so far.
#[repr(C)]
pub(crate) struct Roomy<T> {
    pub(crate) value: T,
    room: [u64; ROOM_WORDS],
}

const ROOM_WORDS: usize = 16;

impl<T> Roomy<T> {
    pub(crate) fn new(value: T) -> Self {
        Roomy { value, room: [0; ROOM_WORDS] }
    }
}

impl Api {
    /// Takes what `GetPjrtApi` returned; nothing if that was null.
    ///
    /// # Safety
    /// `table` must be null or point to a `PJRT_Api` that lives as long as the process.
    pub(crate) unsafe fn new(table: *const c_void) -> Option<Self> {
        ptr::NonNull::new(table as *mut ApiHead).map(Api)
    }

    /// Major and minor version of the API that the plugin was built with.
    pub(crate) fn version(self) -> (i32, i32) {
        (self.head().major, self.head().minor)
    }

    /// Bytes of a structure, as this plugin's version has it.
    ///
    /// Plugins refuse a structure that is shorter than theirs and pass over what is longer.
    pub(crate) fn size(self, known: fn(i32) -> usize) -> usize {
        let (_, minor) = self.version();
        let room = if minor > NEWEST_MINOR { ROOM_WORDS * size_of::<u64>() } else { 0 };
        known(minor) + room
    }

    /// Whether the plugin has the function.
    pub(crate) fn has<A: Arguments>(self) -> bool {
        self.function(A::SLOT).is_some()
    }

    /// Calls the function that `A` belongs to, and returns its structure as the plugin left it.
    ///
    /// # Errors
    /// [`PjrtError::Missing`] if the plugin lacks the function, [`PjrtError::Call`] if the function failed.
    ///
    /// # Safety
    /// Every handle and pointer in `arguments` must be what the function expects, and alive as long as it requires.
    pub(crate) unsafe fn call<A: Arguments>(self, arguments: A) -> Result<A, PjrtError> {
        let function = self.function(A::SLOT).ok_or(PjrtError::Missing { function: A::FUNCTION })?;
        let mut arguments = Roomy::new(arguments);
        *arguments.value.struct_size() = self.size(A::known_size);
        // SAFETY: the slot holds this function by `Arguments`; its structure is sized for the plugin's version, and
        // followed by room where that version is unknown. The caller answers for what is in it.
        let error = unsafe { function((&raw mut arguments).cast()) };
        // SAFETY: every function that is called this way returns null or an error that the caller owns.
        unsafe { self.check(A::FUNCTION, error.cast()) }?;
        Ok(arguments.value)
    }

    /// Turns an error object into an error, and frees it.
    ///
    /// # Safety
    /// `error` must be null or an error object of this plugin that nobody else frees.
    pub(crate) unsafe fn check(self, function: &'static str, error: *mut Error) -> Result<(), PjrtError> {
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: `error` is alive until it is destroyed below; the message lives as long and is copied before.
        let failure = unsafe {
            let code = self.call_error(ErrorGetCode { error, ..Default::default() }).map(|it| it.code[0]);
            let message = self.call_error(ErrorMessage { error, ..Default::default() });
            let message = message.map(|it| text(it.message, it.message_size));
            self.call_error(ErrorDestroy { error, ..Default::default() });
            PjrtError::Call {
                function,
                code: Code::from_raw(code.unwrap_or(2)),
                message: printable(message.unwrap_or_default()),
            }
        };
        Err(failure)
    }

    /// Calls a function of error objects, whose own failure is passed over.
    ///
    /// # Safety
    /// As [`Api::call`].
    unsafe fn call_error<A: Arguments>(self, arguments: A) -> Option<A> {
        let function = self.function(A::SLOT)?;
        let mut arguments = Roomy::new(arguments);
        *arguments.value.struct_size() = self.size(A::known_size);
        // SAFETY: as in `call`. Two of these functions return nothing, so the return value is not looked at.
        unsafe { function((&raw mut arguments).cast()) };
        Some(arguments.value)
    }

    /// The function of a slot, unless the table is shorter or has null there.
    fn function(self, slot: usize) -> Option<Function> {
        let offset = TABLE_OFFSET + slot * size_of::<Option<Function>>();
        if self.head().struct_size < offset + size_of::<Option<Function>>() {
            return None;
        }
        // SAFETY: the offset is within the table by the size that the plugin tells, and aligned; a null pointer is None.
        unsafe { *self.0.as_ptr().cast::<u8>().add(offset).cast::<Option<Function>>() }
    }

    fn head(&self) -> &ApiHead {
        // SAFETY: `new` was given a live table, and every plugin's table has the head.
        unsafe { self.0.as_ref() }
    }
}

type Function = unsafe extern "C" fn(*mut c_void) -> *mut c_void;

/// Copies text of the plugin.
///
/// # Safety
/// `data` must be null, or point to `size` bytes.
pub(crate) unsafe fn text(data: *const c_char, size: usize) -> String {
    // SAFETY: by the contract above.
    String::from_utf8_lossy(unsafe { list(data.cast::<u8>(), size) }).into_owned()
}

/// A list of the plugin, which is null where it is empty.
///
/// # Safety
/// `data` must be null, or point to `size` values that live as long as `'a`.
pub(crate) unsafe fn list<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if data.is_null() || size == 0 {
        return &[];
    }
    // SAFETY: by the contract above.
    unsafe { slice::from_raw_parts(data, size) }
}

macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])* #[repr(C)] pub(crate) struct $name { _opaque: [u8; 0] })*
    };
}

handles! {
    /// `PJRT_Error`.
    Error
    /// `PJRT_Event`.
    Event
    /// `PJRT_Client`.
    Client
    /// `PJRT_Device`, owned by its client.
    Device
    /// `PJRT_DeviceDescription`, owned by its device.
    DeviceDescription
    /// `PJRT_Executable`: what was compiled.
    Executable
    /// `PJRT_LoadedExecutable`: the same on its devices.
    LoadedExecutable
    /// `PJRT_Buffer`.
    Buffer
    /// `PJRT_SerializedExecutable`, which owns the bytes of one.
    SerializedExecutable
}

/// Defines structures with their size in each version.
macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident {
        $($field:ident: $type:ty,)* $(@since $minor:literal { $($later:ident: $later_type:ty,)+ })*
    })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        pub(crate) struct $name {
            pub(crate) struct_size: usize,
            pub(crate) extensions: *mut c_void,
            $(pub(crate) $field: $type,)*
            $($(pub(crate) $later: $later_type,)+)*
        }

        impl Default for $name {
            fn default() -> Self {
                // SAFETY: every field is an integer, an array of integers, a pointer, an optional function or a
                // structure of such, for all of which zero is a value.
                unsafe { mem::zeroed() }
            }
        }

        impl $name {
            /// Bytes of the structure in a minor version.
            #[allow(unused_variables, unused_mut, unused_assignments)]
            pub(crate) fn size_in(minor: i32) -> usize {
                let mut size = 2 * size_of::<usize>();
                $(size = mem::offset_of!($name, $field) + size_of::<$type>();)*
                $(if minor >= $minor {
                    $(size = mem::offset_of!($name, $later) + size_of::<$later_type>();)+
                })*
                size
            }

            /// Offset of every field.
            #[cfg(test)]
            fn offsets() -> Vec<usize> {
                vec![
                    mem::offset_of!($name, struct_size),
                    mem::offset_of!($name, extensions),
                    $(mem::offset_of!($name, $field),)*
                    $($(mem::offset_of!($name, $later),)+)*
                ]
            }
        }
    )*};
}

/// Defines argument structures and the functions they belong to.
macro_rules! functions {
    ($($slot:literal $function:ident $name:ident { $($fields:tt)* })*) => {
        $(structures! {
            #[doc = concat!("Arguments of `", stringify!($function), "`.")]
            $name { $($fields)* }
        }

        // SAFETY: `structures` lays it out as C does; the tests compare it and the slot with the header.
        unsafe impl Arguments for $name {
            const FUNCTION: &'static str = stringify!($function);
            const SLOT: usize = $slot;

            fn known_size(minor: i32) -> usize {
                Self::size_in(minor)
            }

            fn struct_size(&mut self) -> &mut usize {
                &mut self.struct_size
            }
        })*

        #[cfg(test)]
        const FUNCTIONS: &[tests::Layout] = &[$(tests::Layout {
            name: stringify!($function),
            slot: $slot,
            size_in: $name::size_in,
            offsets: $name::offsets,
        }),*];
    };
}

/// One optional figure of [`DeviceMemoryStats`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Stat {
    pub(crate) value: i64,
    pub(crate) is_set: Flag,
}

// `since` names the first version that may have the fields, by the change log where it says so, or else the version
// after the last that is known not to have them.
structures! {
    /// `PJRT_NamedValue`.
    NamedValue {
        name: *const c_char,
        name_size: usize,
        kind: Int,
        value: u64,
        value_size: usize,
    }
    /// `PJRT_Program`.
    Program {
        code: *mut c_char,
        code_size: usize,
        format: *const c_char,
        format_size: usize,
    }
    /// `PJRT_ExecuteOptions`.
    ExecuteOptions {
        send_callbacks: *mut c_void,
        recv_callbacks: *mut c_void,
        send_count: usize,
        recv_count: usize,
        launch_id: Int,
        not_donated: *const i64,
        not_donated_count: usize,
        context: *mut c_void,
        @since 76 { call_location: *const c_char, }
        @since 78 { task_count: usize, task_ids: *mut i32, incarnation_ids: *mut i64, }
        @since 82 {
            multi_slice_config: *mut c_void,
            row_major_callbacks: Flag,
            output_callbacks: *mut c_void,
            output_callback_count: usize,
        }
    }
    /// `PJRT_Buffer_MemoryLayout` whose kind is `Tiled`, the larger of its two.
    TiledLayout {
        tiled_size: usize,
        tiled_extensions: *mut c_void,
        minor_to_major: *const i64,
        minor_to_major_size: usize,
        tile_dims: *const i64,
        tile_dim_sizes: *const usize,
        tile_count: usize,
        kind: Int,
    }
}

functions! {
    0 PJRT_Error_Destroy ErrorDestroy { error: *mut Error, }
    1 PJRT_Error_Message ErrorMessage { error: *mut Error, message: *const c_char, message_size: usize, }
    2 PJRT_Error_GetCode ErrorGetCode { error: *mut Error, code: Int, }
    3 PJRT_Plugin_Initialize PluginInitialize {}
    4 PJRT_Plugin_Attributes PluginAttributes { attributes: *const NamedValue, count: usize, }
    5 PJRT_Event_Destroy EventDestroy { event: *mut Event, }
    6 PJRT_Event_IsReady EventIsReady { event: *mut Event, is_ready: Flag, }
    8 PJRT_Event_Await EventAwait { event: *mut Event, }
    9 PJRT_Event_OnReady EventOnReady {
        event: *mut Event,
        callback: Option<unsafe extern "C" fn(*mut Error, *mut c_void)>,
        user: *mut c_void,
    }
    10 PJRT_Client_Create ClientCreate {
        options: *const NamedValue,
        option_count: usize,
        get_callback: *mut c_void,
        get_user: *mut c_void,
        put_callback: *mut c_void,
        put_user: *mut c_void,
        client: *mut Client,
        try_get_callback: *mut c_void,
        try_get_user: *mut c_void,
    }
    11 PJRT_Client_Destroy ClientDestroy { client: *mut Client, }
    12 PJRT_Client_PlatformName ClientPlatformName { client: *mut Client, name: *const c_char, size: usize, }
    14 PJRT_Client_PlatformVersion ClientPlatformVersion {
        client: *mut Client,
        version: *const c_char,
        size: usize,
    }
    16 PJRT_Client_AddressableDevices ClientDevices {
        client: *mut Client,
        devices: *const *mut Device,
        count: usize,
    }
    20 PJRT_Client_Compile ClientCompile {
        client: *mut Client,
        program: *const Program,
        options: *const c_char,
        options_size: usize,
        executable: *mut LoadedExecutable,
    }
    22 PJRT_Client_BufferFromHostBuffer BufferFromHost {
        client: *mut Client,
        data: *const c_void,
        element_type: Int,
        dims: *const i64,
        dim_count: usize,
        strides: *const i64,
        stride_count: usize,
        semantics: Int,
        device: *mut Device,
        memory: *mut c_void,
        layout: *mut c_void,
        done: *mut Event,
        buffer: *mut Buffer,
    }
    23 PJRT_DeviceDescription_Id DeviceId { description: *mut DeviceDescription, id: Int, }
    26 PJRT_DeviceDescription_Kind DeviceKind {
        description: *mut DeviceDescription,
        kind: *const c_char,
        size: usize,
    }
    28 PJRT_DeviceDescription_ToString DeviceToString {
        description: *mut DeviceDescription,
        string: *const c_char,
        size: usize,
    }
    29 PJRT_Device_GetDescription DeviceGetDescription {
        device: *mut Device,
        description: *mut DeviceDescription,
    }
    34 PJRT_Device_MemoryStats DeviceMemoryStats {
        device: *mut Device,
        in_use: i64,
        peak_in_use: Stat,
        allocations: Stat,
        largest_allocation: Stat,
        limit: Stat,
        others: [Stat; 6],
        @since 82 { peak_allocated: Stat, }
    }
    40 PJRT_Executable_Destroy ExecutableDestroy { executable: *mut Executable, }
    44 PJRT_Executable_NumOutputs ExecutableNumOutputs { executable: *mut Executable, count: usize, }
    48 PJRT_Executable_OptimizedProgram ExecutableOptimizedProgram {
        executable: *mut Executable,
        program: *mut Program,
    }
    49 PJRT_Executable_Serialize ExecutableSerialize {
        executable: *const Executable,
        bytes: *const c_char,
        size: usize,
        owner: *mut SerializedExecutable,
        delete: Option<unsafe extern "C" fn(*mut SerializedExecutable)>,
    }
    50 PJRT_LoadedExecutable_Destroy LoadedDestroy { executable: *mut LoadedExecutable, }
    51 PJRT_LoadedExecutable_GetExecutable LoadedGetExecutable {
        loaded: *mut LoadedExecutable,
        executable: *mut Executable,
    }
    52 PJRT_LoadedExecutable_AddressableDevices LoadedDevices {
        executable: *mut LoadedExecutable,
        devices: *const *mut Device,
        count: usize,
    }
    55 PJRT_LoadedExecutable_Execute LoadedExecute {
        executable: *mut LoadedExecutable,
        options: *mut ExecuteOptions,
        arguments: *const *const *mut Buffer,
        device_count: usize,
        argument_count: usize,
        outputs: *const *mut *mut Buffer,
        complete: *mut *mut Event,
        device: *mut Device,
    }
    56 PJRT_Executable_DeserializeAndLoad ExecutableDeserialize {
        client: *mut Client,
        bytes: *const c_char,
        size: usize,
        loaded: *mut LoadedExecutable,
        @since 71 { options: *const c_char, options_size: usize, }
        @since 82 { load_options: *mut c_void, }
    }
    58 PJRT_Buffer_Destroy BufferDestroy { buffer: *mut Buffer, }
    68 PJRT_Buffer_IsDeleted BufferIsDeleted { buffer: *mut Buffer, is_deleted: Flag, }
    70 PJRT_Buffer_ToHostBuffer BufferToHost {
        buffer: *mut Buffer,
        layout: *mut TiledLayout,
        data: *mut c_void,
        size: usize,
        event: *mut Event,
    }
    72 PJRT_Buffer_ReadyEvent BufferReadyEvent { buffer: *mut Buffer, event: *mut Event, }
    90 PJRT_Executable_OutputElementTypes ExecutableOutputTypes {
        executable: *mut Executable,
        types: *const i32,
        count: usize,
    }
    91 PJRT_Executable_OutputDimensions ExecutableOutputDimensions {
        executable: *mut Executable,
        count: usize,
        dims: *const i64,
        dim_counts: *const usize,
    }
}

#[cfg(test)]
mod tests;
