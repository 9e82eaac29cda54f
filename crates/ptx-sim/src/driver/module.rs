//! Modules: PTX text, its kernels, and its variables in the memory of the device.

use std::{
    collections::{HashMap, HashSet},
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    sync::Arc,
};

use super::{
    Done, Driver, FILE_NOT_FOUND, Handle, INVALID_IMAGE, INVALID_PTX, INVALID_VALUE, NO_BINARY_FOR_GPU,
    NOT_FOUND, OUT_OF_MEMORY, UNSUPPORTED_PTX_VERSION, api, kernel::Function, put, refused,
};
use crate::{
    decode::{self, Kernel},
    mutate::{self, Mutation},
    ptx::{self, PtxError, Space},
    settings::Settings,
};

pub(super) struct LoadedModule {
    text: ptx::Module,
    kernels: HashMap<String, Arc<Kernel>>,
    /// Address and bytes of each variable.
    globals: HashMap<String, (u64, u64)>,
    functions: Vec<(Handle, String)>,
}

impl LoadedModule {
    /// A kernel as the text has it, or as a mutation makes it; none if there is none of this name.
    fn kernel(&self, name: &str, mutation: Option<&Mutation>) -> Result<Option<Arc<Kernel>>, PtxError> {
        let Some(mutation) = mutation.filter(|mutation| mutation.kernel == name) else {
            return Ok(self.kernels.get(name).cloned());
        };
        let absent = || PtxError::new(mutation.line, format!("{mutation} is no mutation of this text"));
        let function = mutate::mutated(&self.text, mutation).ok_or_else(absent)?;
        let addresses = self.globals.iter().map(|(name, (address, _))| (name.clone(), *address)).collect();
        Ok(Some(Arc::new(decode::kernel(&self.text, &addresses, &function)?)))
    }
}

impl Driver {
    fn load(&mut self, text: &str) -> Done<Handle> {
        let module = ptx::parse(text).map_err(|error| self.refuse(&error))?;
        let newest = (self.settings.driver_version / 1000 - 4, self.settings.driver_version % 1000 / 10);
        let (major, minor) = module.version;
        if (major as i32, minor as i32) > newest {
            eprintln!(
                "ptx-sim: PTX {major}.{minor} is newer than what this driver takes, {}.{}",
                newest.0, newest.1
            );
            return Err(UNSUPPORTED_PTX_VERSION);
        }
        if module.target > self.settings.capability {
            eprintln!("ptx-sim: PTX for sm_{} on a device of sm_{}", module.target, self.settings.capability);
            return Err(NO_BINARY_FOR_GPU);
        }
        let globals = self.place_variables(&module)?;
        let addresses = globals.iter().map(|(name, (address, _))| (name.clone(), *address)).collect();
        let kernels = match decode::kernels(&module, &addresses) {
            Ok(kernels) => {
                kernels.into_iter().map(|kernel| (kernel.name.clone(), Arc::new(kernel))).collect()
            }
            Err(error) => {
                self.free_variables(&globals)?;
                return Err(self.refuse(&error));
            }
        };
        let handle = self.handle();
        self.modules.insert(handle, LoadedModule { text: module, kernels, globals, functions: Vec::new() });
        Ok(handle)
    }

    fn place_variables(&mut self, module: &ptx::Module) -> Done<HashMap<String, (u64, u64)>> {
        let mut globals = HashMap::new();
        for variable in &module.variables {
            let read_only = match variable.space {
                Space::Global => false,
                Space::Const => true,
                _ => continue,
            };
            if variable.external {
                eprintln!(
                    "ptx-sim: {} is a variable of another module: modules are not linked",
                    variable.name
                );
                return Err(INVALID_PTX);
            }
            let arena = self.arena()?;
            let address = arena.allocate(variable.size.max(1), read_only).ok_or(OUT_OF_MEMORY)?;
            let mut bytes = variable.initial.clone();
            bytes.resize(variable.size as usize, 0);
            // SAFETY: the allocation has as many bytes.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
            arena.written(address, variable.size);
            globals.insert(variable.name.clone(), (address, variable.size));
        }
        Ok(globals)
    }

    fn free_variables(&mut self, globals: &HashMap<String, (u64, u64)>) -> Done {
        let arena = self.arena()?;
        for (address, _) in globals.values() {
            arena.free(*address);
        }
        Ok(())
    }

    fn refuse(&mut self, error: &ptx::PtxError) -> super::Status {
        eprintln!("ptx-sim: {error}");
        self.refused = Some(error.to_string());
        INVALID_PTX
    }

    fn unload(&mut self, handle: Handle) -> Done {
        let module = self.modules.remove(&handle).ok_or(INVALID_VALUE)?;
        module.functions.iter().for_each(|(function, _)| _ = self.functions.remove(function));
        self.free_variables(&module.globals)
    }

    fn find_function(&mut self, module: Handle, name: &str) -> Done<Handle> {
        let handle = self.handle();
        let capability = self.settings.capability;
        let mutation = self.settings.mutation.as_ref();
        let module = self.modules.get_mut(&module).ok_or(INVALID_VALUE)?;
        let kernel = module.kernel(name, mutation);
        module.functions.push((handle, name.into()));
        let kernel = kernel.map_err(|error| self.refuse(&error))?.ok_or(NOT_FOUND)?;
        self.functions.insert(handle, Function::new(kernel, capability));
        Ok(handle)
    }

    /// Takes other settings; another mutation, or none, is that of modules that are loaded too.
    pub(super) fn adopt(&mut self, settings: Settings) -> Done {
        let before = std::mem::replace(&mut self.settings, settings).mutation;
        if before == self.settings.mutation {
            return Ok(());
        }
        let mutation = self.settings.mutation.as_ref();
        let concerned: HashSet<&str> = before.iter().chain(mutation).map(|it| it.kernel.as_str()).collect();
        let mut changed = Vec::new();
        for module in self.modules.values() {
            for (handle, name) in
                module.functions.iter().filter(|(_, name)| concerned.contains(name.as_str()))
            {
                changed.push(module.kernel(name, mutation).map(|kernel| (*handle, kernel)));
            }
        }
        for kernel in changed {
            if let (handle, Some(kernel)) = kernel.map_err(|error| self.refuse(&error))?
                && let Some(function) = self.functions.get_mut(&handle)
            {
                function.kernel = kernel;
            }
        }
        Ok(())
    }
}

/// # Safety
///
/// The pointer is null or that of an image as the driver takes it.
unsafe fn text<'a>(image: *const c_void) -> Done<&'a str> {
    if image.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: an image has at least the four bytes of a magic number, and a text ends with 0.
    unsafe {
        let start = image.cast::<[u8; 4]>().read_unaligned();
        if start == *b"\x7fELF" || start == [0x50, 0xed, 0x55, 0xba] {
            eprintln!("ptx-sim: the image is no PTX text, and machine code is not interpreted");
            return Err(NO_BINARY_FOR_GPU);
        }
        CStr::from_ptr(image.cast()).to_str().map_err(|_| INVALID_IMAGE)
    }
}

api! {
    NoCapture cuModuleLoadData(driver, module: *mut Handle, image: *const c_void) {
        driver.current()?;
        let handle = driver.load(text(image)?)?;
        put(module, handle)
    }

    // Options of the compiler change nothing here; what they ask to be written is not written.
    NoCapture cuModuleLoadDataEx(driver, module: *mut Handle, image: *const c_void, count: c_uint, _options: *const c_int, _values: *const *mut c_void) {
        driver.current()?;
        if count != 0 {
            return Err(super::NOT_SUPPORTED);
        }
        let handle = driver.load(text(image)?)?;
        put(module, handle)
    }

    NoCapture cuModuleLoad(driver, module: *mut Handle, path: *const c_char) {
        driver.current()?;
        if path.is_null() {
            return Err(INVALID_VALUE);
        }
        let path = CStr::from_ptr(path).to_str().map_err(|_| INVALID_VALUE)?;
        let mut bytes = std::fs::read(path).map_err(|_| FILE_NOT_FOUND)?;
        bytes.extend([0; 4]);
        let handle = driver.load(text(bytes.as_ptr().cast())?)?;
        put(module, handle)
    }

    Nothing cuModuleUnload(driver, module: Handle) {
        driver.unload(module)
    }

    Device cuModuleGetFunction(driver, function: *mut Handle, module: Handle, name: *const c_char) {
        if name.is_null() {
            return Err(INVALID_VALUE);
        }
        let name = CStr::from_ptr(name).to_str().map_err(|_| NOT_FOUND)?;
        let handle = driver.find_function(module, name)?;
        put(function, handle)
    }

    Device cuModuleGetGlobal_v2(driver, address: *mut u64, bytes: *mut usize, module: Handle, name: *const c_char) {
        if name.is_null() {
            return Err(INVALID_VALUE);
        }
        let name = CStr::from_ptr(name).to_str().map_err(|_| NOT_FOUND)?;
        let module = driver.modules.get(&module).ok_or(INVALID_VALUE)?;
        let &(at, size) = module.globals.get(name).ok_or(NOT_FOUND)?;
        if !bytes.is_null() {
            bytes.write(size as usize);
        }
        if address.is_null() { Ok(()) } else { put(address, at) }
    }

    Device cuModuleGetLoadingMode(_driver, mode: *mut c_int) {
        // Eager.
        put(mode, 1)
    }
}

refused! { cuModuleLoadFatBinary cuLinkCreate_v2 cuLibraryLoadData }
