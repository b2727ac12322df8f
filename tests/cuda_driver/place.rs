//! Devices of the stand-in for NVIDIA's driver (`crates/cuda-emulator`), and the launcher on them.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cuda_emulator::{StandIn, StandInDevice};
use prefold::gpu::{Cuda, Precision};

use crate::common::emu;

/// The folder of both libraries, and the kernels' library that they execute; none without a C++ compiler.
pub fn libraries() -> Option<(PathBuf, PathBuf)> {
    static BUILT: OnceLock<Option<(PathBuf, PathBuf)>> = OnceLock::new();
    let build = || {
        let kernels = emu::library("library.cu")?;
        let out = Path::new(env!("CARGO_TARGET_TMPDIR"));
        Some((emu::found(StandIn::build(out))?, kernels))
    };
    BUILT.get_or_init(build).clone()
}

/// The stand-in, loaded once into this process.
fn driver() -> Option<&'static StandIn> {
    static LOADED: OnceLock<Option<StandIn>> = OnceLock::new();
    let load = || {
        let (folder, kernels) = libraries()?;
        Some(StandIn::load(&folder, &kernels).unwrap())
    };
    LOADED.get_or_init(load).as_ref()
}

/// A device of the stand-in that no other test has. What is left of it at the end, and every rule that was broken,
/// fails the test.
pub struct Place {
    device: StandInDevice<'static>,
    pub index: usize,
}

impl Deref for Place {
    type Target = StandInDevice<'static>;

    fn deref(&self) -> &Self::Target {
        &self.device
    }
}

impl Place {
    /// A device of an architecture, as 90 for sm_90, with so many bytes of memory.
    pub fn with_memory(architecture: i32, bytes: usize) -> Option<Self> {
        // As many multiprocessors as the kernels reckon with that the CPU executes directly.
        let device = driver()?.device(architecture, emu::PROCESSORS as i32, bytes);
        let index = device.index();
        Some(Place { device, index })
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
