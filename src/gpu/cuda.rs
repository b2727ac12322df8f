//! A CUDA device, by the driver. Neither a toolkit nor a driver is needed to build this; what is
//! missing is said when the device is opened.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaGraph, CudaStream, DriverError, result, sys};

use super::cublas::Products;
use super::launch::{Launch, Launcher, Product};
use super::tape;
use crate::error::{Error, Result};

// `IMAGES`: name and fatbin of every kernel file, if nvcc was found; see build.rs.
include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// What a block may have without asking for more.
const SHARED: usize = 48 * 1024;

/// A CUDA device with our kernels on it, and one stream.
pub struct Cuda {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    modules: Vec<sys::CUmodule>,
    functions: Mutex<HashMap<&'static str, (sys::CUfunction, usize)>>,
    /// cublasLt, asked for at the first product.
    products: Mutex<Option<Products>>,
    processors: u32,
    name: String,
}

// SAFETY: handles of modules and functions belong to the context and may be used by any thread that
// has bound it, as every method does.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

impl Cuda {
    /// The device of number `index`.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] without a driver, a device of that number, or kernels in this program.
    pub fn open(index: usize) -> Result<Self> {
        let device = format!("cuda:{index}");
        let missing = |reason: &str| Error::Device {
            device: device.clone(),
            reason: reason.into(),
        };
        // SAFETY: loads a library of the system and lets it go.
        if !unsafe { sys::is_culib_present() } {
            return Err(missing(
                "there is no NVIDIA driver (libcuda) on this machine",
            ));
        }
        let failed = |error| driver(&device, "no CUDA device answers", error);
        let count = CudaContext::device_count().map_err(failed)?;
        if index >= usize::try_from(count).unwrap_or(0) {
            return Err(missing(&format!("the driver knows {count} devices")));
        }
        if IMAGES.is_empty() {
            return Err(missing(
                "this program has no kernels in it: nvcc was not found when it was built",
            ));
        }
        let context = CudaContext::new(index).map_err(failed)?;
        let attribute = |attribute| context.attribute(attribute).map_err(failed);
        let processors =
            attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let (major, minor) = context.compute_capability().map_err(failed)?;
        let name = context.name().map_err(failed)?;
        let mut modules = Vec::with_capacity(IMAGES.len());
        for (file, image) in IMAGES {
            // SAFETY: the image is a whole fatbin that nvcc made.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
            modules.push(module.map_err(|error| {
                let what = format!("{name} (sm_{major}{minor}) does not take {file}");
                driver(&device, &what, error)
            })?);
        }
        Ok(Cuda {
            stream: context.new_stream().map_err(failed)?,
            context,
            modules,
            functions: Mutex::default(),
            products: Mutex::default(),
            processors: u32::try_from(processors).unwrap_or(1).max(1),
            name,
        })
    }

    /// Seconds that the device takes for what `work` queues, gaps included.
    ///
    /// # Errors
    ///
    /// Those of `work`, and [`Error::Device`].
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.bind()?;
        let stream = self.stream.cu_stream();
        let [start, end] = [Event::new(self)?, Event::new(self)?];
        // SAFETY: event and stream live.
        self.done("event", unsafe { result::event::record(start.0, stream) })?;
        work()?;
        // SAFETY: as above.
        self.done("event", unsafe { result::event::record(end.0, stream) })?;
        self.done("a kernel that is timed", self.stream.synchronize())?;
        // SAFETY: both were recorded on one stream.
        let milliseconds = self.done("event", unsafe { result::event::elapsed(start.0, end.0) })?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    /// What `work` launches, as one graph that can be replayed. It must do nothing but launch kernels
    /// and products that have run once before.
    ///
    /// # Errors
    ///
    /// Those of `work`, and [`Error::Device`] if the driver cannot record it.
    pub fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Recording> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.done("recording", self.stream.begin_capture(mode))?;
        let worked = work();
        // In any case, or the stream stays unusable.
        let graph = end_capture(&self.stream);
        worked?;
        Ok(Recording::of(self.done("recording", graph)?))
    }

    /// Queues what was recorded.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] of the driver.
    ///
    /// # Safety
    ///
    /// All memory that it uses is still there, and nobody else uses it meanwhile.
    pub unsafe fn replay(&self, recording: &Recording) -> Result<()> {
        let Some(graph) = &recording.0 else {
            return Ok(());
        };
        self.bind()?;
        let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: graph and stream live, and nobody else has the graph; the rest is the caller's promise.
        let result =
            unsafe { result::graph::launch(graph.0.cu_graph_exec(), self.stream.cu_stream()) };
        self.done("replay", result)
    }

    /// See [`Launcher::launch`].
    ///
    /// # Safety
    ///
    /// As there; the stream is of this context.
    unsafe fn launch_on(
        &self,
        stream: sys::CUstream,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared: usize,
        params: &[u8],
    ) -> Result<()> {
        self.bind()?;
        let function = self.function(kernel, shared)?;
        let mut aligned = vec![0u64; params.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut aligned)[..params.len()].copy_from_slice(params);
        let [x, y, z] = grid;
        // SAFETY: the driver copies the one parameter, whose size it knows from the kernel; the rest is
        // the caller's promise.
        let result = unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (threads, 1, 1),
                shared as u32,
                stream,
                &mut [aligned.as_mut_ptr().cast::<c_void>()],
            )
        };
        result.map_err(|error| Error::Launch {
            kernel,
            reason: format!("grid {grid:?} of {threads} threads: {error:?}"),
        })
    }

    /// See [`Launcher::product`].
    ///
    /// # Safety
    ///
    /// As there; the stream is of this context.
    unsafe fn product_on(&self, stream: sys::CUstream, product: &Product) -> Option<Result<()>> {
        if let Err(error) = self.bind() {
            return Some(Err(error));
        }
        let mut products = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        let products = products.get_or_insert_with(|| Products::open(self));
        // SAFETY: the caller's promise; the stream is of the bound context.
        unsafe { products.queue(product, stream.cast()) }
    }

    /// Bytes of the last cache before memory.
    pub fn cache(&self) -> usize {
        let attribute = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
        let bytes = self.context.attribute(attribute).unwrap_or(0);
        usize::try_from(bytes).unwrap_or(0)
    }

    fn bind(&self) -> Result<()> {
        self.done("bind", self.context.bind_to_thread())
    }

    fn done<T>(&self, what: &str, result: Result<T, DriverError>) -> Result<T> {
        let device = format!("cuda:{}", self.context.ordinal());
        result.map_err(|error| driver(&device, what, error))
    }

    /// A kernel by its name, allowed `shared` bytes.
    fn function(&self, kernel: &'static str, shared: usize) -> Result<sys::CUfunction> {
        let mut functions = self
            .functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let found = match functions.get(kernel) {
            Some(&found) => Some(found),
            None => {
                let name = CString::new(kernel).unwrap_or_default();
                let found = self.modules.iter().find_map(|&module| {
                    // SAFETY: the module is loaded as long as `self` lives.
                    unsafe { result::module::get_function(module, name.clone()) }.ok()
                });
                found.map(|function| (function, SHARED))
            }
        };
        let Some((function, allowed)) = found else {
            return Err(Error::Launch {
                kernel,
                reason: "the embedded images do not have it".into(),
            });
        };
        if shared > allowed {
            let attribute =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            let result = unsafe {
                result::function::set_function_attribute(function, attribute, shared as i32)
            };
            self.done(kernel, result)?;
        }
        functions.insert(kernel, (function, allowed.max(shared)));
        Ok(function)
    }
}

/// A point in the stream.
struct Event(sys::CUevent);

impl Event {
    fn new(cuda: &Cuda) -> Result<Self> {
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        cuda.done("event", result::event::create(flags)).map(Event)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and not used after.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// Launches that were recorded, if there were any.
pub struct Recording(Option<Mutex<Graph>>);

struct Graph(CudaGraph);

// SAFETY: its handles may be used by any thread that has bound the context, one at a time.
unsafe impl Send for Graph {}

impl Recording {
    fn of(graph: Option<CudaGraph>) -> Self {
        Recording(graph.map(|graph| Mutex::new(Graph(graph))))
    }
}

fn end_capture(stream: &Arc<CudaStream>) -> Result<Option<CudaGraph>, DriverError> {
    stream.end_capture(sys::CUgraphInstantiate_flags(0))
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
        if self.context.bind_to_thread().is_ok() {
            // Its handle is of this context.
            let products = self.products.get_mut();
            drop(products.unwrap_or_else(PoisonError::into_inner).take());
            for &module in &self.modules {
                // SAFETY: nothing of it runs any more.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}

fn driver(device: &str, what: &str, error: DriverError) -> Error {
    let why = error.error_string().map_or_else(
        |_| format!("{error:?}"),
        |text| text.to_string_lossy().into_owned(),
    );
    Error::Device {
        device: device.into(),
        reason: format!("{what}: {why}"),
    }
}

/// A piece of the device's memory.
pub struct CudaMemory {
    address: sys::CUdeviceptr,
    bytes: usize,
    stream: Arc<CudaStream>,
}

impl CudaMemory {
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    fn place(&self, at: usize, count: usize) -> Result<sys::CUdeviceptr> {
        if at.checked_add(count).is_none_or(|end| end > self.bytes) {
            return Err(Error::Shape {
                op: "copy",
                want: format!("at most {} bytes", self.bytes),
                got: format!("{count} from {at} on"),
            });
        }
        Ok(self.address + at as u64)
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        if self.stream.context().bind_to_thread().is_ok() {
            // SAFETY: allocated on this stream; freed after what was launched on it before.
            let _ = unsafe { result::free_async(self.address, self.stream.cu_stream()) };
        }
    }
}

impl Launcher for Cuda {
    type Memory = CudaMemory;
    type Graph = Recording;

    fn alloc(&self, bytes: usize, zeroed: bool) -> Result<CudaMemory> {
        tape::spoil();
        self.bind()?;
        let stream = self.stream.cu_stream();
        // Never none: an address is always good for copies of nothing.
        let bytes = bytes.max(256);
        let what = format!("no memory of {bytes} bytes");
        // SAFETY: the stream lives; whoever reads the memory has written it, or asked for zeros.
        let address = self.done(&what, unsafe { result::malloc_async(stream, bytes) })?;
        let memory = CudaMemory {
            address,
            bytes,
            stream: self.stream.clone(),
        };
        if zeroed {
            // SAFETY: the memory was just allocated, with so many bytes.
            self.done("memset", unsafe {
                result::memset_d8_async(address, 0, bytes, stream)
            })?;
        }
        Ok(memory)
    }

    fn address(&self, memory: &CudaMemory) -> u64 {
        memory.address
    }

    fn write(&self, memory: &mut CudaMemory, at: usize, from: &[u8]) -> Result<()> {
        tape::spoil();
        let to = memory.place(at, from.len())?;
        if from.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `place` checked the length. From pageable memory the driver copies to its own before
        // it returns.
        let result = unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) };
        self.done("copy to the device", result)
    }

    fn read(&self, memory: &CudaMemory, at: usize, to: &mut [u8]) -> Result<()> {
        tape::spoil();
        let from = memory.place(at, to.len())?;
        if to.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `place` checked the length; `to` is not touched before the stream is done.
        let result = unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) };
        self.done("copy from the device", result)?;
        self.done("a kernel before this copy", self.stream.synchronize())
    }

    fn copy(
        &self,
        from: &CudaMemory,
        from_at: usize,
        to: &mut CudaMemory,
        to_at: usize,
        bytes: usize,
    ) -> Result<()> {
        tape::spoil();
        let (from, to) = (from.place(from_at, bytes)?, to.place(to_at, bytes)?);
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `place` checked both; two pieces do not overlap.
        let result = unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) };
        self.done("copy on the device", result)
    }

    unsafe fn launch(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared: usize,
        params: &[u8],
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            self.launch_on(
                self.stream.cu_stream(),
                kernel,
                grid,
                threads,
                shared,
                params,
            )
        }
    }

    unsafe fn product(&self, product: &Product) -> Option<Result<()>> {
        // SAFETY: the caller's promise.
        unsafe { self.product_on(self.stream.cu_stream(), product) }
    }

    unsafe fn graph(&self, launches: &[Launch]) -> Result<Recording> {
        // On a stream of its own: other threads go on queueing on the one that there is.
        let aside = self.done("a stream to record on", self.context.new_stream())?;
        let stream = aside.cu_stream();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.done("recording", aside.begin_capture(mode))?;
        let queued = launches.iter().try_for_each(|launch| match launch {
            Launch::Kernel {
                kernel,
                grid,
                threads,
                shared,
                params,
            } => {
                // SAFETY: the caller's promise.
                unsafe { self.launch_on(stream, kernel, *grid, *threads, *shared, params) }
            }
            Launch::Product(product) => {
                // SAFETY: as above.
                let done = unsafe { self.product_on(stream, product) };
                done.unwrap_or(Err(Error::Launch {
                    kernel: "cublasLtMatmul",
                    reason: "it has no such product any more".into(),
                }))
            }
        });
        // In any case, or the stream stays unusable.
        let graph = end_capture(&aside);
        queued?;
        Ok(Recording::of(self.done("recording", graph)?))
    }

    unsafe fn replay(&self, graph: &Recording) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { Cuda::replay(self, graph) }
    }

    fn processors(&self) -> u32 {
        self.processors
    }

    fn describe(&self) -> String {
        self.name.clone()
    }
}
