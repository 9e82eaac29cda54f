//! What streams do, at once or as a graph.

use std::{
    ffi::{c_uint, c_void},
    sync::Arc,
};

use super::{Done, Driver, Handle, INVALID_VALUE, api, blas::Product, kernel::KernelLaunch, put, refused};

/// A piece of a stream's work.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Kernel(Arc<KernelLaunch>),
    Upload {
        to: u64,
        from: *const u8,
        bytes: usize,
    },
    Download {
        to: *mut u8,
        from: u64,
        bytes: usize,
    },
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    /// The pattern again and again; the address is a multiple of what repeats in it.
    Fill {
        to: u64,
        pattern: [u8; 4],
        bytes: usize,
    },
    Product(Arc<Product>),
    Host {
        function: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
    },
}

// SAFETY: the pointers are the caller's, who keeps them valid for whichever thread launches the graph.
unsafe impl Send for Node {}
// SAFETY: as above; a node is not changed.
unsafe impl Sync for Node {}

impl Driver {
    pub(super) fn execute(&mut self, node: &Node) -> Done {
        match *node {
            Node::Kernel(ref launch) => self.run(launch),
            Node::Upload { to, from, bytes } => {
                self.in_bounds(to, bytes)?;
                // SAFETY: the caller of the API gave a source of as many bytes; the target lies in an allocation.
                unsafe { std::ptr::copy_nonoverlapping(from, to as *mut u8, bytes) };
                self.arena()?.written(to, bytes as u64);
                Ok(())
            }
            Node::Download { to, from, bytes } => {
                self.in_bounds(from, bytes)?;
                // SAFETY: the caller of the API gave a target of as many bytes; the source lies in an allocation.
                unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to, bytes) };
                Ok(())
            }
            Node::Copy { to, from, bytes } => {
                self.in_bounds(to, bytes)?;
                self.in_bounds(from, bytes)?;
                // SAFETY: both lie in allocations, and no kernel runs while the state is locked.
                unsafe { self.arena()?.copy(to, from, bytes as u64) };
                Ok(())
            }
            Node::Fill { to, pattern, bytes } => {
                self.in_bounds(to, bytes)?;
                // SAFETY: the range lies in an allocation.
                let target = unsafe { std::slice::from_raw_parts_mut(to as *mut u8, bytes) };
                target.iter_mut().zip(pattern.iter().cycle()).for_each(|(byte, value)| *byte = *value);
                self.arena()?.written(to, bytes as u64);
                Ok(())
            }
            Node::Product(ref product) => self.multiply(product),
            Node::Host { function, data } => {
                // SAFETY: the caller of the API gave a function for this data.
                unsafe { function(data) };
                Ok(())
            }
        }
    }
}

api! {
    Device cuGraphInstantiateWithFlags(driver, executable: *mut Handle, graph: Handle, _flags: u64) {
        let nodes = driver.graphs.get(&graph).cloned().ok_or(INVALID_VALUE)?;
        let handle = driver.handle();
        driver.executables.insert(handle, nodes);
        put(executable, handle)
    }

    Device cuGraphUpload(driver, executable: Handle, stream: Handle) {
        driver.stream(stream)?;
        driver.executables.get(&executable).map(drop).ok_or(INVALID_VALUE)
    }

    Device cuGraphLaunch(driver, executable: Handle, stream: Handle) {
        let nodes = driver.executables.get(&executable).cloned().ok_or(INVALID_VALUE)?;
        let stream = driver.stream(stream)?;
        if stream.is_capturing() {
            nodes.iter().for_each(|node| stream.record(node.clone()));
            return Ok(());
        }
        nodes.iter().try_for_each(|node| driver.execute(node))
    }

    Nothing cuGraphExecDestroy(driver, executable: Handle) {
        driver.executables.remove(&executable).map(drop).ok_or(INVALID_VALUE)
    }

    Nothing cuGraphDestroy(driver, graph: Handle) {
        driver.graphs.remove(&graph).map(drop).ok_or(INVALID_VALUE)
    }

    // Nodes are counted, not handed out.
    Device cuGraphGetNodes(driver, graph: Handle, nodes: *mut Handle, count: *mut usize) {
        let length = driver.graphs.get(&graph).ok_or(INVALID_VALUE)?.len();
        if !nodes.is_null() {
            return Err(super::NOT_SUPPORTED);
        }
        put(count, length)
    }

    Device cuLaunchHostFunc(driver, stream: Handle, function: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void) {
        let node = Node::Host { function: function.ok_or(INVALID_VALUE)?, data };
        let stream = driver.stream(stream)?;
        if stream.is_capturing() {
            stream.record(node);
            return Ok(());
        }
        driver.execute(&node)
    }

    Device cuGraphDebugDotPrint(driver, graph: Handle, _path: *const std::ffi::c_char, _flags: c_uint) {
        driver.graphs.get(&graph).ok_or(INVALID_VALUE)?;
        Err(super::NOT_SUPPORTED)
    }
}

refused! { cuGraphExecUpdate_v2 cuGraphInstantiateWithParams cuGraphCreate cuGraphClone cuGraphAddKernelNode_v2 }
