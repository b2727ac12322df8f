//! Files that are cut short, damaged or made to hurt: each gives one line of error that names the
//! file, never a panic, and never more memory than the file's size warrants.

use crate::common;
mod folders;
mod ggufs;
mod mutations;
mod origins;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use crate::common::{TempDir, tiny};
use prefold::Error;
use prefold::model::config::Family;
use prefold::model::weights::{DType, TensorView, Weights};

/// Counts what is allocated now, and the most that ever was.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time, so that what is counted is its own.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Bytes allowed for each byte of the files: Q4_0 unfolds to 7, headers to more.
const MULTIPLE: usize = 24;
/// For messages, thread pools and the harness's own output.
const SLACK: usize = 256 << 10;

/// Opens a model and reads all there is; `size` is that of its files. The error, if any.
fn read_all(path: &Path, size: usize) -> Option<String> {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = Weights::open(path).map(|weights| {
        for name in weights.names() {
            let view = weights.get(name).unwrap();
            let values = view.to_f32().unwrap();
            assert_eq!(values.len(), view.shape.iter().product::<usize>());
        }
        weights.fingerprint();
        assert!(weights.parameters() > 0);
        if let Some(meta) = weights.gguf() {
            for key in meta.keys() {
                let _ = meta.str(key);
                let _ = meta.bool(key);
                let _ = meta.u32(key);
                let _ = meta.usize(key);
                let _ = meta.f32(key);
                let _ = meta.count(key);
                let _ = meta.strs(key);
                let _ = meta.i32s(key);
                let _ = meta.f32s(key);
            }
        }
    });
    let used = PEAK.load(Relaxed) - before;
    let allowed = MULTIPLE * size + SLACK;
    assert!(used <= allowed, "{used} bytes for files of {size}");
    let error = result.err()?;
    let line = error.to_string();
    assert!(
        line.contains(&*path.to_string_lossy()),
        "no file is named: {line}"
    );
    assert!(!line.contains('\n') && line.len() < 1000, "{line}");
    Some(line)
}

/// The error's line.
fn refused(path: &Path) -> String {
    let size = match path.metadata() {
        Ok(meta) => meta.len() as usize,
        Err(_) => 0,
    };
    read_all(path, size).unwrap_or_else(|| panic!("{} was taken", path.display()))
}

#[track_caller]
fn assert_says(line: &str, part: &str) {
    assert!(line.contains(part), "{part:?} is not in: {line}");
}

#[test]
fn paths_that_are_not_models() {
    let _alone = alone();
    let dir = TempDir::new();
    assert!(matches!(
        Weights::open(&dir.path().join("absent")),
        Err(Error::Io { .. })
    ));
    assert_says(&refused(&dir.path().join("absent")), "absent: No such file");
    assert_says(&refused(dir.path()), "config.json: No such file");
    assert_says(
        &refused(&dir.write("m.gguf", "")),
        "m.gguf: the file is empty",
    );
    assert_says(&refused(&dir.write("m.gguf", "GG")), "not a GGUF file");
    assert_says(
        &refused(&dir.write("m.gguf", [0xff; 500])),
        "not a GGUF file",
    );
    std::fs::create_dir(dir.path().join("config.json")).unwrap();
    assert_says(&refused(dir.path()), "config.json: not a regular file");
}

#[test]
fn views_that_lie_about_their_size() {
    let _alone = alone();
    for shape in [vec![3], vec![usize::MAX, 2], vec![usize::MAX / 8]] {
        let view = TensorView {
            dtype: DType::F32,
            shape,
            data: vec![0; 8].into(),
        };
        let error = view.to_f32().unwrap_err();
        assert!(matches!(error, Error::Shape { .. }));
        assert_says(&error.to_string(), "of F32, got 8 bytes");
    }
    let folder = tiny::folder(&tiny::config(Family::Llama), &tiny::tensors(Family::Llama));
    let weights = Weights::open(folder.path()).unwrap();
    let line = weights.get("no\nsuch").unwrap_err().to_string();
    assert_says(&line, &folder.path().to_string_lossy());
    assert_says(&line, "no tensor no such");
}
