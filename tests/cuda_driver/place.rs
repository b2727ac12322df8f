//! The stand-in for NVIDIA's driver (`tests/driver/`): built, loaded, and asked what it saw.

use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use libloading::Library;
use prefold::gpu::{Cuda, Precision};

use crate::common::emu;

/// The folder of both libraries, and the kernels' library that they execute; none without a C++ compiler.
pub fn libraries() -> Option<(PathBuf, PathBuf)> {
    static BUILT: OnceLock<Option<(PathBuf, PathBuf)>> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> Option<(PathBuf, PathBuf)> {
    if !cfg!(target_os = "linux") {
        crate::common::say("skipped: the stand-in for NVIDIA's driver is for Linux");
        return None;
    }
    let kernels = emu::library("library.cu")?;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver");
    let hash = emu::hash_of(std::slice::from_ref(&sources));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("driver-{hash:016x}"));
    std::fs::create_dir_all(&folder).unwrap();
    // Found by their names once they are loaded, and by LD_LIBRARY_PATH in another process.
    let named = |name: &str| format!("-Wl,-soname,{name}");
    emu::compile(&folder.join("libcuda.so"), &|command| {
        let sources = ["cuda.cpp", "state.cpp", "memory.cpp"].map(|file| sources.join(file));
        command.args(sources).arg(named("libcuda.so"));
        command.args(["-fvisibility=hidden", "-ldl"]);
    })?;
    emu::compile(&folder.join("libcublasLt.so"), &|command| {
        command.arg(sources.join("cublaslt.cpp"));
        command.arg(named("libcublasLt.so"));
        command.arg("-L").arg(&folder).arg("-l:libcuda.so");
        command.args(["-Wl,-rpath,$ORIGIN", "-fvisibility=hidden"]);
    })?;
    Some((folder, kernels))
}

/// Loads the stand-in into this process. What asks for libcuda.so from then on gets it, even where there is
/// another.
fn driver() -> Option<&'static Library> {
    static LOADED: OnceLock<Option<Library>> = OnceLock::new();
    let load = || {
        let (folder, kernels) = libraries()?;
        let open = |name: &str| {
            // SAFETY: our own libraries, whose initialisers do nothing.
            unsafe { Library::new(folder.join(name)) }.unwrap()
        };
        let cuda = open("libcuda.so");
        std::mem::forget(open("libcublasLt.so"));
        let path = CString::new(kernels.to_str().unwrap()).unwrap();
        // SAFETY: of this type in tests/driver/state.cpp.
        let failed = unsafe {
            let function =
                cuda.get::<unsafe extern "C" fn(*const c_char) -> c_int>(b"stand_in_kernels\0");
            function.unwrap()(path.as_ptr())
        };
        assert_eq!(failed, 0, "{} cannot be loaded", kernels.display());
        Some(cuda)
    };
    LOADED.get_or_init(load).as_ref()
}

/// A device of the stand-in that no other test has. What is left of it at the end, and every rule that was broken,
/// fails the test.
pub struct Place {
    library: &'static Library,
    pub index: usize,
}

/// A number or a text that the stand-in gives.
type Say = unsafe extern "C" fn(c_int, *mut c_char, usize) -> usize;

impl Place {
    /// A device of an architecture, as 90 for sm_90, with so many bytes of memory.
    pub fn with_memory(architecture: i32, bytes: usize) -> Option<Self> {
        static NEXT: AtomicI32 = AtomicI32::new(0);
        let library = driver()?;
        let index = NEXT.fetch_add(1, Ordering::Relaxed);
        type Device = unsafe extern "C" fn(c_int, c_int, c_int, c_int, usize);
        // SAFETY: of this type in tests/driver/state.cpp.
        unsafe {
            let device = library.get::<Device>(b"stand_in_device\0").unwrap();
            // As many multiprocessors as the kernels reckon with that the CPU executes directly.
            device(index, architecture / 10, architecture % 10, 24, bytes);
        }
        Some(Place {
            library,
            index: index as usize,
        })
    }

    pub fn new(architecture: i32) -> Option<Self> {
        Self::with_memory(architecture, 4 << 30)
    }

    pub fn open(&self) -> prefold::Result<Cuda> {
        // SAFETY: placeholders, of which the stand-in makes our kernels.
        unsafe { Cuda::with_images(self.index, images()) }
    }

    pub fn gpu(
        &self,
        precision: Precision,
        library: bool,
    ) -> prefold::gpu::Gpu<crate::common::device::Device> {
        let cuda = self.open().unwrap();
        prefold::gpu::Gpu::new(
            crate::common::device::Device::Cuda { cuda, library },
            precision,
        )
    }

    fn say(&self, name: &[u8]) -> String {
        let mut text = vec![0u8; 1 << 16];
        // SAFETY: of this type in tests/driver/state.cpp, and it writes no more than it may.
        let length = unsafe {
            let function = self.library.get::<Say>(name).unwrap();
            function(self.index as c_int, text.as_mut_ptr().cast(), text.len())
        };
        text.truncate(length.min(text.len() - 1));
        String::from_utf8(text).unwrap()
    }

    /// Rules that were broken since this was asked last, one a line.
    pub fn complaints(&self) -> String {
        self.say(b"stand_in_complaints\0")
    }

    /// What was not given back.
    pub fn left(&self) -> String {
        self.say(b"stand_in_left\0")
    }

    /// How often something was done: "launches", "products", "replays", "captures", "waits", "released".
    pub fn count(&self, what: &str) -> usize {
        type Count = unsafe extern "C" fn(c_int, *const c_char) -> usize;
        let what = CString::new(what).unwrap();
        // SAFETY: of this type in tests/driver/state.cpp.
        unsafe {
            let function = self.library.get::<Count>(b"stand_in_count\0").unwrap();
            function(self.index as c_int, what.as_ptr())
        }
    }

    /// The `nth` call of a function of the driver by this thread from now on gives `code`; 0: none does.
    pub fn fail(&self, function: &str, nth: u32, code: i32) {
        type Fail = unsafe extern "C" fn(*const c_char, u32, c_int);
        let function = CString::new(function).unwrap();
        // SAFETY: of this type in tests/driver/state.cpp.
        unsafe {
            let fail = self.library.get::<Fail>(b"stand_in_fail\0").unwrap();
            fail(function.as_ptr(), nth, code);
        }
    }

    /// The same for calls by any thread on this device.
    pub fn fail_for_all(&self, function: &str, nth: u32, code: i32) {
        type Fail = unsafe extern "C" fn(c_int, *const c_char, u32, c_int);
        let function = CString::new(function).unwrap();
        // SAFETY: of this type in tests/driver/state.cpp.
        unsafe {
            let fail = self.library.get::<Fail>(b"stand_in_fail_on\0").unwrap();
            fail(self.index as c_int, function.as_ptr(), nth, code);
        }
    }

    /// What this thread has called since `fail`, and how often.
    pub fn calls(&self) -> Vec<(String, u32)> {
        let text = self.say(b"stand_in_calls\0");
        let call = |line: &str| {
            let (name, count) = line.split_once(' ').unwrap();
            (name.to_owned(), count.parse().unwrap())
        };
        text.lines().map(call).collect()
    }

    /// Fails if a rule was broken or something is left.
    #[track_caller]
    pub fn clean(&self, what: &str) {
        let (complaints, left) = (self.complaints(), self.left());
        assert!(
            complaints.is_empty() && left.is_empty(),
            "{what}: {complaints}left: {left}"
        );
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.clean("at the end");
        }
    }
}

/// A placeholder for each file of kernels.
pub fn images() -> &'static [(&'static str, &'static [u8])] {
    static IMAGES: OnceLock<Vec<(&'static str, &'static [u8])>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let files = std::fs::read_dir(folder).unwrap();
        let mut stems: Vec<String> = files
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        stems.sort();
        let image = |stem: String| {
            let image = format!("stand-in image of {stem}\0").into_bytes();
            (&*stem.leak(), &*image.leak())
        };
        stems.into_iter().map(image).collect()
    })
}
