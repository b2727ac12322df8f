//! Engines: opening one, ids, scores, shorter prompts.

use std::cell::RefCell;
use std::ffi::c_char;
use std::sync::Arc;

use serde_json::Value;

use super::Code;
use super::control::control;
use super::{
    Failure, Object, Outcome, argument, engine, fill, find, guard, keep, no_handle, put, sized,
    slice, text,
};
use crate::engine::Engine;
use crate::gpu::Precision;
use crate::hard::json::Call;

/// See the header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PrefoldEngineOptions {
    struct_size: usize,
    device: *const c_char,
    precision: u32,
    threads: usize,
    adapter: *const c_char,
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_engine_open(path: *const c_char, out: *mut u64) -> i32 {
    prefold_engine_open_with(path, std::ptr::null(), out)
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_engine_open_with(
    path: *const c_char,
    options: *const PrefoldEngineOptions,
    out: *mut u64,
) -> i32 {
    guard(|| {
        put(out, 0, "out")?;
        let none = PrefoldEngineOptions {
            struct_size: 0,
            device: std::ptr::null(),
            precision: 0,
            threads: 0,
            adapter: std::ptr::null(),
        };
        let given = sized(options, none, "options")?;
        let mut builder = Engine::builder(text(path, "path")?).threads(given.threads);
        if !given.device.is_null() {
            builder = builder.device(text(given.device, "device")?.parse()?);
        }
        builder = builder.precision(match given.precision {
            0 => Precision::default(),
            1 => Precision::Bf16,
            2 => Precision::F32,
            other => return Err(argument(format!("precision {other}: 1 is bf16, 2 f32"))),
        });
        if !given.adapter.is_null() {
            builder = builder.adapter(text(given.adapter, "adapter")?);
        }
        put(out, keep(Object::Engine(Arc::new(builder.build()?))), "out")
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_tokenize(
    engine_handle: u64,
    string: *const c_char,
    add_special: u32,
    parse_special: u32,
    ids: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> i32 {
    guard(|| {
        let engine = engine(engine_handle)?;
        let string = text(string, "text")?;
        let tokenizer = engine.tokenizer()?;
        let made = tokenizer.encode(string, add_special != 0, parse_special != 0)?;
        fill(&made.ids, ids, capacity, count, "ids")
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_score(
    engine_handle: u64,
    ids: *const u32,
    ids_count: usize,
    nll: *mut f32,
    capacity: usize,
    count: *mut usize,
) -> i32 {
    guard(|| {
        let scores = engine(engine_handle)?.score(slice(ids, ids_count, "ids")?, &control())?;
        fill(&scores, nll, capacity, count, "nll")
    })
}

/// What a compression gives, as JSON.
fn compressed(engine_handle: u64, call: &str, request: &str) -> Outcome<String> {
    let engine = engine(engine_handle)?;
    let arguments: Value =
        serde_json::from_str(request).map_err(|error| argument(format!("request: {error}")))?;
    let Value::Object(arguments) = arguments else {
        return Err(argument("request: expected a JSON object"));
    };
    let call = Call::new(call, arguments)?;
    let result = engine.compress_with(&call.request, &control())?;
    Ok(call.answer(&result)?.to_string())
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_compress_call(
    engine_handle: u64,
    call: *const c_char,
    request: *const c_char,
    out: *mut u64,
) -> i32 {
    guard(|| {
        put(out, 0, "out")?;
        let (call, request) = (text(call, "call")?, text(request, "request")?);
        let json = compressed(engine_handle, call, request)?;
        put(out, keep(Object::Text(json.into())), "out")
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_text_read(
    handle: u64,
    buffer: *mut c_char,
    capacity: usize,
    count: *mut usize,
) -> i32 {
    guard(|| match find(handle) {
        Some(Object::Text(json)) => fill_text(&json, buffer, capacity, count),
        _ => Err(no_handle(handle, "text")),
    })
}

/// Copies a text and its zero.
fn fill_text(text: &str, buffer: *mut c_char, capacity: usize, count: *mut usize) -> Outcome {
    let bytes: Vec<c_char> = text.bytes().map(|byte| byte as c_char).chain([0]).collect();
    fill(&bytes, buffer, capacity, count, "result")
}

/// A result that did not fit its buffer, and what it is the result of.
struct Unread {
    engine: u64,
    request: String,
    json: String,
}

thread_local! {
    static UNREAD: RefCell<Option<Unread>> = RefCell::default();
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_compress(
    engine_handle: u64,
    request: *const c_char,
    result: *mut c_char,
    capacity: usize,
    count: *mut usize,
) -> i32 {
    guard(|| {
        let request = text(request, "request")?;
        let unread = UNREAD.with(|unread| unread.take());
        let same = |unread: &Unread| unread.engine == engine_handle && unread.request == request;
        let json = match unread.filter(same) {
            Some(unread) => unread.json,
            None => compressed(engine_handle, "compress_prompt", request)?,
        };
        let filled = fill_text(&json, result, capacity, count);
        if let Err(Failure(Code::Buffer, _)) = &filled {
            // For the next call, which brings a longer buffer.
            let unread = Unread {
                engine: engine_handle,
                request: request.into(),
                json,
            };
            UNREAD.with(|kept| kept.replace(Some(unread)));
        }
        filled
    })
}
