//! Prefixes, adapters and generated ids.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};

use super::control::control;
use super::{
    Code, Failure, Object, Outcome, adapter, argument, engine, fill, guard, keep, prefix, put,
    sized, slice, text,
};
use crate::engine::Engine;
use crate::prefix::llama_cpp::{Layout, Slot};
use crate::prefix::{Dtype, KRope, KvPrefix, Method, Placeholder};
use crate::soft::{EncodeOptions, KeepBy, PrefillOptions, Query, Sampling, Source};

/// Text, ids or both; see the header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PrefoldSource {
    struct_size: usize,
    text: *const c_char,
    ids: *const u32,
    ids_count: usize,
}

fn source(pointer: *const PrefoldSource, engine: &Engine, prompt: bool) -> Outcome<Source> {
    if pointer.is_null() {
        return Err(argument("source is NULL"));
    }
    let none = PrefoldSource {
        struct_size: 0,
        text: std::ptr::null(),
        ids: std::ptr::null(),
        ids_count: 0,
    };
    let given = sized(pointer, none, "source")?;
    if !given.text.is_null() {
        let text = text(given.text, "source text")?;
        let ids = engine.tokenizer()?.encode(text, prompt, prompt)?.ids;
        return Ok(Source::text(text, ids));
    }
    let ids = slice(given.ids, given.ids_count, "source ids")?;
    Ok(Source::ids(ids.to_vec()))
}

/// See the header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PrefoldEncodeOptions {
    struct_size: usize,
    method: u32,
    piece_tokens: usize,
}

/// See the header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PrefoldPrefillOptions {
    struct_size: usize,
    keep: f64,
    keep_by: u32,
}

/// See the header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PrefoldSampling {
    struct_size: usize,
    max_new_tokens: usize,
    temperature: f32,
    top_p: f32,
    seed: u64,
    ignore_eos: u32,
}

fn sampling(options: *const PrefoldSampling, capacity: usize) -> Outcome<Sampling> {
    let d = Sampling::default();
    let default = PrefoldSampling {
        struct_size: 0,
        max_new_tokens: d.max_new_tokens,
        temperature: d.temperature,
        top_p: d.top_p,
        seed: d.seed,
        ignore_eos: 0,
    };
    let given = sized(options, default, "options")?;
    Ok(Sampling {
        // More than there is room for would be made in vain.
        max_new_tokens: given.max_new_tokens.min(capacity),
        temperature: given.temperature,
        top_p: given.top_p,
        seed: given.seed,
        ignore_eos: given.ignore_eos != 0,
    })
}

/// See the header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PrefoldPrefixInfo {
    struct_size: usize,
    layers: usize,
    kv_heads: usize,
    tokens: usize,
    head_dim: usize,
    next_pos: usize,
    source_tokens: usize,
    positions: usize,
    k_rope: u32,
    method: u32,
}

/// See the header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PrefoldRead {
    struct_size: usize,
    layer: usize,
    value: u32,
    dtype: u32,
    k_rope: u32,
    interleaved: u32,
    head_stride: usize,
    token_stride: usize,
    channel_stride: usize,
}

fn dtype(number: u32) -> Outcome<Dtype> {
    match number {
        0 => Ok(Dtype::F32),
        1 => Ok(Dtype::F16),
        2 => Ok(Dtype::Bf16),
        other => Err(argument(format!("dtype {other}: 0 is f32, 1 f16, 2 bf16"))),
    }
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_adapter_open(
    engine_handle: u64,
    folder: *const c_char,
    out: *mut u64,
) -> i32 {
    guard(|| {
        put(out, 0, "out")?;
        let adapter = engine(engine_handle)?
            .prefixes()
            .adapter(Path::new(text(folder, "folder")?))?;
        put(out, keep(Object::Adapter(Arc::new(adapter))), "out")
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_encode(
    engine_handle: u64,
    adapter_handle: u64,
    given: *const PrefoldSource,
    options: *const PrefoldEncodeOptions,
    out: *mut u64,
) -> i32 {
    guard(|| {
        put(out, 0, "out")?;
        let (engine, adapter) = (engine(engine_handle)?, adapter(adapter_handle)?);
        let default = PrefoldEncodeOptions {
            struct_size: 0,
            method: 0,
            piece_tokens: 0,
        };
        let options = sized(options, default, "options")?;
        let options = EncodeOptions {
            method: match options.method {
                0 => None,
                1 => Some(Method::FiveHundredX),
                2 => Some(Method::Icae),
                5 => Some(Method::Pooled),
                other => return Err(argument(format!("method {other}"))),
            },
            piece_tokens: (options.piece_tokens > 0).then_some(options.piece_tokens),
        };
        let source = source(given, &engine, false)?;
        let prefix = engine
            .prefixes()
            .with(&control())
            .encode(&adapter, &source, &options)?;
        put(out, keep(Object::Prefix(Arc::new(prefix))), "out")
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_prefill(
    engine_handle: u64,
    given: *const PrefoldSource,
    options: *const PrefoldPrefillOptions,
    out: *mut u64,
) -> i32 {
    guard(|| {
        put(out, 0, "out")?;
        let engine = engine(engine_handle)?;
        let default = PrefoldPrefillOptions {
            struct_size: 0,
            keep: 0.0,
            keep_by: 0,
        };
        let options = sized(options, default, "options")?;
        let keep_by = match options.keep_by {
            0 => KeepBy::ExpectedAttention,
            1 => KeepBy::Snapkv,
            2 => KeepBy::Llmlingua,
            3 => KeepBy::Keydiff,
            other => return Err(argument(format!("keep_by {other}"))),
        };
        let options = PrefillOptions {
            keep: (options.keep != 0.0).then_some((options.keep, keep_by)),
        };
        let source = source(given, &engine, true)?;
        let prefix = engine
            .prefixes()
            .with(&control())
            .prefill(&source, &options)?;
        put(out, keep(Object::Prefix(Arc::new(prefix))), "out")
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_generate(
    engine_handle: u64,
    prefix_handle: u64,
    prompt: *const u32,
    prompt_count: usize,
    options: *const PrefoldSampling,
    ids: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> i32 {
    guard(|| {
        let engine = engine(engine_handle)?;
        let prefix = match prefix_handle {
            0 => None,
            handle => Some(prefix(handle)?),
        };
        let prompt = slice(prompt, prompt_count, "prompt")?;
        let sampling = sampling(options, capacity)?;
        let mut each = |_| ControlFlow::Continue(());
        let made = engine.prefixes().with(&control()).generate(
            prefix.as_deref(),
            prompt,
            &sampling,
            &mut each,
        )?;
        fill(&made.ids, ids, capacity, count, "ids")
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_regenerate(
    engine_handle: u64,
    adapter_handle: u64,
    prefix_handle: u64,
    options: *const PrefoldSampling,
    ids: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> i32 {
    guard(|| {
        let (engine, prefix) = (engine(engine_handle)?, prefix(prefix_handle)?);
        let adapter = adapter(adapter_handle)?;
        adapter.check_prefix(&prefix)?;
        let bos: Vec<u32> = engine.info().bos.into_iter().collect();
        if adapter.begin().is_none() && bos.is_empty() {
            return Err(argument("the model names no BOS to ask for the text with"));
        }
        let ask = Query {
            prefix: Some(&prefix),
            prompt: adapter.opening(&bos),
            gold: &[],
        };
        let sampling = sampling(options, capacity)?;
        let mut each = |_, _| ControlFlow::Continue(());
        let replies = engine
            .prefixes()
            .with(&control())
            .answer(&[ask], &sampling, &mut each)?;
        let made = replies
            .first()
            .map_or(&[][..], |reply| &reply.generated.ids);
        fill(made, ids, capacity, count, "ids")
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_prefix_open(path: *const c_char, out: *mut u64) -> i32 {
    guard(|| {
        put(out, 0, "out")?;
        let (prefix, _) = KvPrefix::read(Path::new(text(path, "path")?))?;
        put(out, keep(Object::Prefix(Arc::new(prefix))), "out")
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_prefix_save(handle: u64, path: *const c_char, element: u32) -> i32 {
    guard(|| {
        let prefix = prefix(handle)?;
        prefix.write(Path::new(text(path, "path")?), dtype(element)?)?;
        Ok(())
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_prefix_export_llama_cpp(
    handle: u64,
    template: *const c_char,
    placeholder: u32,
    path: *const c_char,
) -> i32 {
    guard(|| {
        let prefix = prefix(handle)?;
        let layout = match template.is_null() {
            true => Layout::new(4)?,
            false => Layout::of_template(Path::new(text(template, "template")?))?,
        };
        let path = Path::new(text(path, "path")?);
        let placeholder = match placeholder {
            u32::MAX => Placeholder::Unique,
            id => Placeholder::Repeated(id),
        };
        Slot::new(&prefix, &layout, placeholder)?.write(path)?;
        Ok(())
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_prefix_info(handle: u64, out: *mut PrefoldPrefixInfo) -> i32 {
    guard(|| {
        let prefix = prefix(handle)?;
        if out.is_null() || !out.is_aligned() {
            return Err(argument("out is NULL or unaligned"));
        }
        // SAFETY: not NULL, aligned, and the header asks for the size in front.
        let size = unsafe { out.cast::<usize>().read() };
        if size < size_of::<usize>() {
            return Err(argument(format!("out: struct_size is {size}")));
        }
        let shape = prefix.shape();
        let info = PrefoldPrefixInfo {
            struct_size: size,
            layers: shape.layers,
            kv_heads: shape.kv_heads,
            tokens: shape.tokens,
            head_dim: shape.head_dim,
            next_pos: prefix.next_pos(),
            source_tokens: prefix.origin().source_tokens,
            positions: prefix.positions().len(),
            k_rope: u32::from(prefix.k_rope() == KRope::Applied),
            method: match prefix.origin().method {
                Method::FiveHundredX => 1,
                Method::Icae => 2,
                Method::Prefill => 3,
                Method::Pruned => 4,
                Method::Pooled => 5,
                Method::Trained => 6,
            },
        };
        let known = size.min(size_of::<PrefoldPrefixInfo>());
        // SAFETY: the caller has `size` bytes, which are at least `known`; no overlap.
        unsafe {
            std::ptr::copy_nonoverlapping((&raw const info).cast::<u8>(), out.cast(), known);
        }
        Ok(())
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_prefix_positions(
    handle: u64,
    positions: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> i32 {
    guard(|| {
        let prefix = prefix(handle)?;
        fill(prefix.positions(), positions, capacity, count, "positions")
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn prefold_prefix_read(
    handle: u64,
    what: *const PrefoldRead,
    buffer: *mut c_void,
    bytes: usize,
) -> i32 {
    guard(|| {
        let prefix = prefix(handle)?;
        if what.is_null() {
            return Err(argument("what is NULL"));
        }
        let default = PrefoldRead {
            struct_size: 0,
            layer: 0,
            value: 0,
            dtype: 0,
            k_rope: 1,
            interleaved: 0,
            head_stride: 0,
            token_stride: 0,
            channel_stride: 0,
        };
        let what = sized(what, default, "what")?;
        read_strided(&prefix, what, buffer, bytes)
    })
}

fn read_strided(
    prefix: &KvPrefix,
    what: PrefoldRead,
    buffer: *mut c_void,
    bytes: usize,
) -> Outcome {
    let s = prefix.shape();
    let element = dtype(what.dtype)?;
    let wanted = match what.k_rope {
        0 => KRope::None,
        _ => KRope::Applied,
    };
    let (values, rotated);
    match prefix.layer(what.layer) {
        None => {
            let message = format!("layer {}: there are {}", what.layer, s.layers);
            return Err(argument(message));
        }
        Some([_, v]) if what.value != 0 => values = v,
        Some(_) => {
            rotated = prefix.key_layer(what.layer, wanted)?;
            values = &rotated;
        }
    }
    // Strides of 0: [kv_heads, tokens, head_dim] without gaps.
    let or = |stride: usize, dense: usize| if stride == 0 { dense } else { stride };
    let size = element.bytes();
    let channel = or(what.channel_stride, size);
    let token = or(what.token_stride, s.head_dim * size);
    let head = or(what.head_stride, s.tokens * s.head_dim * size);
    let last = [
        (s.kv_heads - 1, head),
        (s.tokens - 1, token),
        (s.head_dim - 1, channel),
    ]
    .iter()
    .try_fold(size, |sum, &(count, stride)| {
        sum.checked_add(count.checked_mul(stride)?)
    });
    let Some(need) = last.filter(|&need| need <= bytes) else {
        let message = format!("the buffer has {bytes} bytes, and {last:?} are needed");
        return Err(Failure(Code::Buffer, message));
    };
    if buffer.is_null() || need > isize::MAX as usize {
        return Err(argument("buffer is NULL"));
    }
    let half = s.head_dim / 2;
    for (row, row_values) in values.chunks_exact(s.head_dim).enumerate() {
        let start = row / s.tokens * head + row % s.tokens * token;
        for (i, &value) in row_values.iter().enumerate() {
            let i = match what.interleaved != 0 && what.value == 0 {
                true => i % half * 2 + i / half,
                false => i,
            };
            let mut word = [0; 4];
            match element {
                Dtype::F32 => word = value.to_le_bytes(),
                Dtype::F16 => word[..2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                Dtype::Bf16 => word[..2].copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            }
            // SAFETY: `buffer` is not NULL and has `bytes` bytes as the header asks; the greatest
            // offset plus an element is `need`, which is not more.
            unsafe {
                let to = buffer.cast::<u8>().add(start + i * channel);
                std::ptr::copy_nonoverlapping(word.as_ptr(), to, size);
            }
        }
    }
    Ok(())
}
