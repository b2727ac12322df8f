//! DLPack 1.x: a tensor handed to another library without a copy, as its header `dlpack.h` lays it out.

// Structures that C reads, and a destructor that C calls.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

/// `kDLCPU`.
pub const CPU: i32 = 1;
const FLOAT: u8 = 2;
const READ_ONLY: u64 = 1;
const UNUSED: &CStr = c"dltensor_versioned";

#[repr(C)]
struct Version {
    major: u32,
    minor: u32,
}

#[repr(C)]
struct Device {
    kind: i32,
    id: i32,
}

#[repr(C)]
struct Element {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct Described {
    data: *mut c_void,
    device: Device,
    ndim: i32,
    element: Element,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensorVersioned`, and after it what it points to.
#[repr(C)]
struct Managed {
    version: Version,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
    flags: u64,
    tensor: Described,
    shape: [i64; 3],
    strides: [i64; 3],
    /// Keeps the data alive.
    owner: Py<PyAny>,
}

/// Frees what [`capsule`] made.
unsafe extern "C" fn delete(managed: *mut Managed) {
    if !managed.is_null() {
        // SAFETY: a consumer calls this once, with the pointer that `capsule` made by `Box::into_raw`.
        // Without the interpreter's lock the reference is released when the lock is next held.
        drop(unsafe { Box::from_raw(managed) });
    }
}

/// Frees a tensor whose capsule was never used.
unsafe extern "C" fn discard(capsule: *mut ffi::PyObject) {
    // SAFETY: the interpreter calls this with the capsule; a used one has another name, and its tensor
    // belongs to the consumer.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, UNUSED.as_ptr()) == 1 {
            delete(ffi::PyCapsule_GetPointer(capsule, UNUSED.as_ptr()).cast());
        }
    }
}

/// A capsule of `data`, `shape` without gaps, which lives as long as `owner`, for a consumer of
/// `max_version` or later.
pub fn capsule(
    owner: &Bound<'_, PyAny>,
    data: *const f32,
    shape: [usize; 3],
    max_version: Option<(u32, u32)>,
    device: Option<(i32, i32)>,
    copy: Option<bool>,
) -> PyResult<Py<PyAny>> {
    if max_version.is_none_or(|(major, _)| major < 1) {
        let reason = "a prefix is read-only, which DLPack says from version 1.0 on; \
                      copy it by numpy.array first";
        return Err(PyBufferError::new_err(reason));
    }
    if device.is_some_and(|device| device != (CPU, 0)) {
        return Err(PyBufferError::new_err("a prefix lies in the CPU's memory"));
    }
    if copy == Some(true) {
        let reason = "a copy is not made here; copy the result";
        return Err(PyBufferError::new_err(reason));
    }
    let [heads, tokens, width] = shape.map(|size| size as i64);
    let mut managed = Box::new(Managed {
        version: Version { major: 1, minor: 0 },
        context: std::ptr::null_mut(),
        deleter: Some(delete),
        flags: READ_ONLY,
        tensor: Described {
            data: data.cast_mut().cast(),
            device: Device { kind: CPU, id: 0 },
            ndim: 3,
            element: Element {
                code: FLOAT,
                bits: 32,
                lanes: 1,
            },
            shape: std::ptr::null_mut(),
            strides: std::ptr::null_mut(),
            byte_offset: 0,
        },
        shape: [heads, tokens, width],
        strides: [tokens * width, width, 1],
        owner: owner.clone().unbind(),
    });
    managed.tensor.shape = managed.shape.as_mut_ptr();
    managed.tensor.strides = managed.strides.as_mut_ptr();
    let managed = Box::into_raw(managed);
    // SAFETY: the pointer is valid and the name lives for ever; on failure the tensor is freed here.
    unsafe {
        let made = ffi::PyCapsule_New(managed.cast(), UNUSED.as_ptr(), Some(discard));
        match Bound::from_owned_ptr_or_err(owner.py(), made) {
            Ok(made) => Ok(made.unbind()),
            Err(error) => {
                delete(managed);
                Err(error)
            }
        }
    }
}
