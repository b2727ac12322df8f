//! A replacement for libcuda and libcublasLt. `cpp/driver/cuda.cpp` says which rules it keeps.

use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};

use libloading::Library;

use crate::compile::{fingerprint, shared_library, sources};
use crate::{Error, Result};

/// As in cpp/driver/state.h.
const DEVICES: c_int = 256;

/// Stand-ins for NVIDIA's driver and cuBLASLt in this process, executing the kernels of a library.
pub struct StandIn {
    library: Library,
}

/// One device of the stand-in. Tests that run at the same time take one each.
pub struct StandInDevice<'a> {
    library: &'a Library,
    index: c_int,
}

/// A text that the stand-in writes, cut where the room ends; its whole length.
type Text = unsafe extern "C" fn(c_int, *mut c_char, usize) -> usize;

impl StandIn {
    /// Makes `libcuda.so` and `libcublasLt.so` in a folder below `out`, and gives the folder. Another
    /// process takes them by `LD_LIBRARY_PATH`, with the kernels' library in `$STAND_IN_KERNELS`.
    ///
    /// # Errors
    ///
    /// [`Error::Platform`] where this is not Linux; [`Error::NoCompiler`]; [`Error::Compile`] with the
    /// compiler's report; [`Error::File`].
    pub fn build(out: &Path) -> Result<PathBuf> {
        let sources = sources().join("driver");
        let hash = fingerprint(std::slice::from_ref(&sources))?;
        let folder = out.join(format!("driver-{hash:016x}"));
        // Found by their names once they are loaded, and by LD_LIBRARY_PATH in another process.
        shared_library(&folder.join("libcuda.so"), |command| {
            let files = ["cuda.cpp", "state.cpp", "memory.cpp"].map(|file| sources.join(file));
            command.args(files).arg("-Wl,-soname,libcuda.so");
            command.args(["-fvisibility=hidden", "-ldl"]);
        })?;
        shared_library(&folder.join("libcublasLt.so"), |command| {
            command.arg(sources.join("cublaslt.cpp"));
            command.arg("-Wl,-soname,libcublasLt.so");
            command.arg("-L").arg(&folder).arg("-l:libcuda.so");
            command.args(["-Wl,-rpath,$ORIGIN", "-fvisibility=hidden"]);
        })?;
        Ok(folder)
    }

    /// Loads both into this process, for good; once, as all share one driver and one library of kernels. What asks for libcuda.so from then on gets the stand-in,
    /// even where there is a driver. `folder` is [`StandIn::build`]'s, `kernels` a library by
    /// [`compile`](crate::compile).
    ///
    /// # Errors
    ///
    /// [`Error::Load`]; [`Error::NoKernels`] where the kernels' library cannot be loaded.
    pub fn load(folder: &Path, kernels: &Path) -> Result<Self> {
        // SAFETY: libraries of this crate, whose initialisers do nothing.
        let open = |name: &str| unsafe { Library::new(folder.join(name)) };
        let library = open("libcuda.so")?;
        std::mem::forget(open("libcublasLt.so")?);
        let path = c_string(&kernels.to_string_lossy());
        type Kernels = unsafe extern "C" fn(*const c_char) -> c_int;
        // SAFETY: of this type in cpp/driver/state.cpp.
        let failed = unsafe { library.get::<Kernels>(b"stand_in_kernels\0")?(path.as_ptr()) };
        if failed != 0 {
            return Err(Error::NoKernels(kernels.into()));
        }
        Ok(StandIn { library })
    }

    /// The next device: of an architecture (90 for sm_90), with so many multiprocessors and bytes of memory.
    ///
    /// # Panics
    ///
    /// After 256 devices of a process.
    pub fn device(&self, architecture: i32, processors: i32, bytes: usize) -> StandInDevice<'_> {
        static NEXT: AtomicI32 = AtomicI32::new(0);
        let index = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(
            (0..DEVICES).contains(&index),
            "no more than {DEVICES} devices"
        );
        type Device = unsafe extern "C" fn(c_int, c_int, c_int, c_int, usize);
        let device = StandInDevice {
            library: &self.library,
            index,
        };
        let function = device.function::<Device>(b"stand_in_device\0");
        // SAFETY: of this type in cpp/driver/state.cpp.
        unsafe {
            function(
                index,
                architecture / 10,
                architecture % 10,
                processors,
                bytes,
            )
        };
        device
    }
}

impl StandInDevice<'_> {
    /// Its ordinal, as `cuDeviceGet` takes it.
    pub fn index(&self) -> usize {
        self.index as usize
    }

    /// A function of the stand-in, which `StandIn::load` has found to be one.
    fn function<T: Copy>(&self, name: &[u8]) -> T {
        // SAFETY: callers name the type that the function has in cpp/driver/state.cpp.
        let found = unsafe { self.library.get::<T>(name) };
        *found.expect("the stand-in has all its functions")
    }

    fn text(&self, name: &[u8]) -> String {
        let function = self.function::<Text>(name);
        let mut text = vec![0u8; 1 << 16];
        // SAFETY: of this type, and it writes no more than the length given.
        let length = unsafe { function(self.index, text.as_mut_ptr().cast(), text.len()) };
        text.truncate(length.min(text.len() - 1));
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Rules that were broken since this was asked last, one a line.
    pub fn complaints(&self) -> String {
        self.text(b"stand_in_complaints\0")
    }

    /// What was not freed, in words; empty if everything was.
    pub fn left(&self) -> String {
        self.text(b"stand_in_left\0")
    }

    /// How often something was done: "launches", "products", "replays", "captures", "waits", "released", "clusters",
    /// "dependent launches", or a function of the driver that executes; 0 for another word.
    pub fn count(&self, what: &str) -> usize {
        type Count = unsafe extern "C" fn(c_int, *const c_char) -> usize;
        let what = c_string(what);
        // SAFETY: of this type in cpp/driver/state.cpp.
        unsafe { self.function::<Count>(b"stand_in_count\0")(self.index, what.as_ptr()) }
    }

    /// The `nth` call of a function of the driver by this thread from now on gives `code`; 0: none does.
    pub fn fail(&self, function: &str, nth: u32, code: i32) {
        type Fail = unsafe extern "C" fn(*const c_char, u32, c_int);
        let function = c_string(function);
        // SAFETY: as above.
        unsafe { self.function::<Fail>(b"stand_in_fail\0")(function.as_ptr(), nth, code) }
    }

    /// The same for calls by any thread on this device.
    pub fn fail_for_all(&self, function: &str, nth: u32, code: i32) {
        type Fail = unsafe extern "C" fn(c_int, *const c_char, u32, c_int);
        let function = c_string(function);
        // SAFETY: as above.
        unsafe {
            self.function::<Fail>(b"stand_in_fail_on\0")(self.index, function.as_ptr(), nth, code);
        }
    }

    /// What this thread has called since [`fail`](Self::fail), and how often.
    pub fn calls(&self) -> Vec<(String, u32)> {
        let text = self.text(b"stand_in_calls\0");
        let call = |line: &str| {
            let (name, count) = line.split_once(' ')?;
            Some((name.to_owned(), count.parse().ok()?))
        };
        text.lines().filter_map(call).collect()
    }
}

/// A name or path as C takes it; up to a zero byte, which none has.
fn c_string(text: &str) -> CString {
    let text = text.split('\0').next().unwrap_or_default();
    CString::new(text).unwrap_or_default()
}
