//! The C ABI: see `include/prefold.h`, which says what each function does and who owns what.
//!
//! Handles are numbers that are looked up, not pointers: a closed or invented one is an error code.
//! Every function runs inside [`guard`], so that no panic crosses, and what went wrong is kept for the
//! thread that asked.

// The one place where raw pointers come in.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc)]

mod control;
mod engine;
mod prefix;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use crate::control::{CancelToken, Control};
use crate::engine::Engine;
use crate::error::Error;
use crate::prefix::KvPrefix;
use crate::soft::Adapter;

/// What a function returns: `PREFOLD_…` of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
enum Code {
    Ok = 0,
    Argument = 1,
    Io = 2,
    Format = 3,
    Unsupported = 4,
    Budget = 5,
    Device = 6,
    Buffer = 7,
    Handle = 8,
    Panic = 9,
    Cancelled = 10,
    Deadline = 11,
}

/// Why a function fails.
struct Failure(Code, String);

type Outcome<T = ()> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::Io { .. } => Code::Io,
            Error::Format { .. } => Code::Format,
            Error::Unsupported { .. } => Code::Unsupported,
            Error::Budget { .. } => Code::Budget,
            Error::Device { .. } | Error::Launch { .. } => Code::Device,
            Error::Cancelled => Code::Cancelled,
            Error::Deadline => Code::Deadline,
            _ => Code::Argument,
        };
        Failure(code, error.to_string())
    }
}

fn argument(reason: impl Into<String>) -> Failure {
    Failure(Code::Argument, reason.into())
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs a function's body; keeps its failure for this thread.
fn guard(body: impl FnOnce() -> Outcome) -> i32 {
    let (code, message) = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return Code::Ok as i32,
        Ok(Err(Failure(code, message))) => (code, message),
        Err(_) => (Code::Panic, "a bug in prefold: it panicked".into()),
    };
    let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
    LAST_ERROR.with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = message;
        }
    });
    code as i32
}

/// What a handle may stand for.
#[derive(Clone)]
enum Object {
    Engine(Arc<Engine>),
    Adapter(Arc<Adapter>),
    Prefix(Arc<KvPrefix>),
    Control(Arc<(CancelToken, Control)>),
    Text(Arc<str>),
}

static OBJECTS: LazyLock<RwLock<HashMap<u64, Object>>> = LazyLock::new(RwLock::default);
static NEXT: AtomicU64 = AtomicU64::new(1);

fn keep(object: Object) -> u64 {
    let handle = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut objects = OBJECTS.write().unwrap_or_else(PoisonError::into_inner);
    objects.insert(handle, object);
    handle
}

fn find(handle: u64) -> Option<Object> {
    let objects = OBJECTS.read().unwrap_or_else(PoisonError::into_inner);
    objects.get(&handle).cloned()
}

fn no_handle(handle: u64, what: &str) -> Failure {
    let message = format!("handle {handle} is not an open {what}");
    Failure(Code::Handle, message)
}

fn engine(handle: u64) -> Outcome<Arc<Engine>> {
    match find(handle) {
        Some(Object::Engine(engine)) => Ok(engine),
        _ => Err(no_handle(handle, "engine")),
    }
}

fn adapter(handle: u64) -> Outcome<Arc<Adapter>> {
    match find(handle) {
        Some(Object::Adapter(adapter)) => Ok(adapter),
        _ => Err(no_handle(handle, "adapter")),
    }
}

fn prefix(handle: u64) -> Outcome<Arc<KvPrefix>> {
    match find(handle) {
        Some(Object::Prefix(prefix)) => Ok(prefix),
        _ => Err(no_handle(handle, "prefix")),
    }
}

/// A C string as UTF-8.
fn text<'a>(pointer: *const c_char, name: &str) -> Outcome<&'a str> {
    if pointer.is_null() {
        return Err(argument(format!("{name} is NULL")));
    }
    // SAFETY: not NULL, and the header asks for a string that ends with a zero and lives through
    // the call.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str()
        .map_err(|_| argument(format!("{name} is not UTF-8")))
}

/// Elements that the caller lends for reading.
fn slice<'a, T>(pointer: *const T, count: usize, name: &str) -> Outcome<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() || !pointer.is_aligned() || count > isize::MAX as usize / size_of::<T>() {
        return Err(argument(format!("{name} is NULL, unaligned or too long")));
    }
    // SAFETY: not NULL, aligned, and the header asks for `count` elements that live through the call.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// Where one value goes.
fn put<T>(pointer: *mut T, value: T, name: &str) -> Outcome {
    if pointer.is_null() || !pointer.is_aligned() {
        return Err(argument(format!("{name} is NULL or unaligned")));
    }
    // SAFETY: not NULL, aligned, and the header asks for room for one.
    unsafe { pointer.write(value) };
    Ok(())
}

/// Copies `values` to a buffer of `capacity` elements and says how many there are in `count`, even
/// when there is too little room.
fn fill<T: Copy>(
    values: &[T],
    buffer: *mut T,
    capacity: usize,
    count: *mut usize,
    name: &str,
) -> Outcome {
    if !count.is_null() {
        put(count, values.len(), "count")?;
    }
    if values.len() > capacity {
        let message = format!(
            "{name} has room for {capacity}, and {} are needed",
            values.len()
        );
        return Err(Failure(Code::Buffer, message));
    }
    if values.is_empty() {
        return Ok(());
    }
    if buffer.is_null() || !buffer.is_aligned() {
        return Err(argument(format!("{name} is NULL or unaligned")));
    }
    // SAFETY: not NULL, aligned, with room for `capacity` elements as the header asks, which are at
    // least as many; and no two of the caller's buffers are one of ours.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), buffer, values.len()) };
    Ok(())
}

/// A struct of the caller, who may have been built with an older header: what is missing at its end
/// stays as in `default`. Every struct begins with its size.
fn sized<T: Copy>(pointer: *const T, default: T, name: &str) -> Outcome<T> {
    if pointer.is_null() {
        return Ok(default);
    }
    if !pointer.is_aligned() {
        return Err(argument(format!("{name} is unaligned")));
    }
    // SAFETY: not NULL, aligned, and the header asks for the size in front.
    let size = unsafe { pointer.cast::<usize>().read() };
    if size < size_of::<usize>() || size > 4096 {
        return Err(argument(format!("{name}: struct_size is {size}")));
    }
    let mut value = default;
    let known = size.min(size_of::<T>());
    // SAFETY: both are `known` bytes long, plain numbers of any bits, and do not overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), (&raw mut value).cast::<u8>(), known);
    }
    Ok(value)
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_last_error() -> *const c_char {
    LAST_ERROR.with(|last| match last.try_borrow() {
        Ok(last) => last.as_ptr(),
        Err(_) => c"".as_ptr(),
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_abi_version() -> u32 {
    1
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_close(handle: u64) -> i32 {
    guard(|| {
        let mut objects = OBJECTS.write().unwrap_or_else(PoisonError::into_inner);
        let object = objects.remove(&handle);
        drop(objects);
        object.map(drop).ok_or_else(|| no_handle(handle, "object"))
    })
}
