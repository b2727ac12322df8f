//! A CUDA device, by the driver. Neither a toolkit nor a driver is needed to build this; what is
//! missing is said when the device is opened.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::boxes::EncodeTiled;
use super::cublas::Products;
use super::launch::{BoxMap, Boxed, Kernel, Launch, LaunchConfig, Launcher, Product};
use crate::error::{Error, Result};

// `IMAGES`: name and fatbin of every kernel file, if nvcc was found; see build.rs.
include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// What a block may have without asking for more.
const SHARED: usize = 48 * 1024;

/// A CUDA device with our kernels on it, and one stream.
pub struct Cuda {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// `None`: the device's own.
    pool: Option<Pool>,
    modules: Vec<sys::CUmodule>,
    functions: Mutex<HashMap<&'static str, Function>>,
    /// cublasLt, asked for at the first product.
    products: Mutex<Option<Products>>,
    processors: u32,
    /// Compute capability.
    capability: (i32, i32),
    /// The driver's encoder of tensor maps, where kernels for compute capability 9.0 run.
    encode: OnceLock<Option<EncodeTiled>>,
    name: String,
}

// SAFETY: handles of modules and functions belong to the context and may be used by any thread that
// has bound it, as every method does.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

impl Cuda {
    /// Whether this machine has an NVIDIA driver, with a device or without.
    pub fn driver_present() -> bool {
        // SAFETY: loads a library of the system and lets it go.
        unsafe { sys::is_culib_present() }
    }

    /// The device of number `index`.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] without a driver, a device of that number, or kernels in this program.
    pub fn open(index: usize) -> Result<Self> {
        // SAFETY: whole fatbins that nvcc made of our kernels.
        unsafe { Self::with_images(index, IMAGES) }
    }

    /// The same with kernels that were built elsewhere: name and fatbin of every file of `kernels/`.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] without a driver, a device of that number, or for an image that the driver does not
    /// take.
    ///
    /// # Safety
    ///
    /// The images are whole, and their kernels are those of this crate.
    pub unsafe fn with_images(index: usize, images: &[(&str, &[u8])]) -> Result<Self> {
        let device = format!("cuda:{index}");
        let missing = |reason: &str| Error::Device {
            device: device.clone(),
            reason: reason.into(),
        };
        if !Self::driver_present() {
            return Err(missing("no NVIDIA driver (libcuda) found on this machine"));
        }
        let failed = |error| driver(&device, "no CUDA device answers", error);
        let count = CudaContext::device_count().map_err(failed)?;
        if index >= usize::try_from(count).unwrap_or(0) {
            return Err(missing(&format!("the driver knows {count} devices")));
        }
        if images.is_empty() {
            return Err(missing(
                "this program has no kernels in it: nvcc was not found when it was built",
            ));
        }
        let context = CudaContext::new(index).map_err(failed)?;
        // SAFETY: this is for cudarc's own slices, which do not occur here; and with it the first stream of
        // each context waits for the whole device, which breaks what another thread is recording there.
        unsafe { context.disable_event_tracking() };
        let attribute = |attribute| context.attribute(attribute).map_err(failed);
        let processors =
            attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let (major, minor) = context.compute_capability().map_err(failed)?;
        let mut cuda = Cuda {
            name: context.name().map_err(failed)?,
            stream: context.new_stream().map_err(failed)?,
            // Without one everything works, only slower.
            pool: Pool::new(context.cu_device()).ok(),
            context,
            modules: Vec::with_capacity(images.len()),
            functions: Mutex::default(),
            products: Mutex::default(),
            processors: u32::try_from(processors).unwrap_or(1).max(1),
            capability: (major, minor),
            encode: OnceLock::new(),
        };
        for (file, image) in images {
            // SAFETY: the caller's promise.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
            cuda.modules.push(module.map_err(|error| {
                let name = &cuda.name;
                let what = format!(
                    "{name} (sm_{major}{minor}, {}) does not take {file}",
                    version()
                );
                driver(&device, &what, error)
            })?);
        }
        Ok(cuda)
    }

    /// Seconds that the device takes for what `work` queues, gaps included.
    ///
    /// # Errors
    ///
    /// The error of `work`; [`Error::Device`] if the driver fails.
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
    /// The error of `work`; [`Error::Device`] if the driver cannot record it.
    pub fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Recording> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.done("recording", self.stream.begin_capture(mode))?;
        let worked = work();
        // In any case, or the stream stays unusable.
        let recording = self.end_capture(&self.stream);
        worked?;
        recording
    }

    /// Queues what was recorded.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if the driver fails.
    ///
    /// # Safety
    ///
    /// All memory that it uses is still there, and not in other use meanwhile.
    pub unsafe fn replay(&self, recording: &Recording) -> Result<()> {
        let Some(graph) = &recording.0 else {
            return Ok(());
        };
        self.bind()?;
        let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: graph and stream live, and this thread alone has the graph; the rest is the caller's promise.
        let result = unsafe { result::graph::launch(graph.executable, self.stream.cu_stream()) };
        self.done("replay", result)
    }

    /// What was recorded on `stream` since this thread began to.
    fn end_capture(&self, stream: &CudaStream) -> Result<Recording> {
        // SAFETY: the stream lives.
        let graph = unsafe { result::stream::end_capture(stream.cu_stream()) };
        let graph = self.done("recording", graph)?;
        if graph.is_null() {
            return Ok(Recording(None));
        }
        // SAFETY: the graph was just made, and what is made of it does not need it.
        let executable = unsafe {
            let made = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            self.done("recording", made)?
        };
        Ok(Recording(Some(Mutex::new(Graph {
            executable,
            context: self.context.clone(),
        }))))
    }

    /// Starts a kernel on a stream of this context.
    ///
    /// # Safety
    ///
    /// As of [`Launcher::submit`].
    unsafe fn launch(&self, stream: sys::CUstream, launch: &Kernel) -> Result<()> {
        self.bind()?;
        let &Kernel {
            name: kernel,
            config,
            ref params,
        } = launch;
        let function = self.function(kernel, config)?;
        let [x, y, z] = config.grid;
        let (threads, shared) = (config.block, config.shared_bytes);
        let mut params = [params.bytes().as_ptr().cast_mut().cast::<c_void>()];
        let mut attributes = attributes(config);
        let result = if attributes.is_empty() {
            // SAFETY: the driver copies the one parameter, whose size it knows from the kernel; the rest
            // is the caller's promise.
            unsafe {
                result::launch_kernel(
                    function,
                    (x, y, z),
                    (threads, 1, 1),
                    shared as u32,
                    stream,
                    &mut params,
                )
            }
        } else {
            let config = sys::CUlaunchConfig {
                gridDimX: x,
                gridDimY: y,
                gridDimZ: z,
                blockDimX: threads,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: shared as u32,
                hStream: stream,
                attrs: attributes.as_mut_ptr(),
                numAttrs: attributes.len() as u32,
            };
            // SAFETY: as above; the driver copies the attributes too.
            unsafe {
                sys::cuLaunchKernelEx(&config, function, params.as_mut_ptr(), std::ptr::null_mut())
            }
            .result()
        };
        result.map_err(|error| {
            let device = self.context.ordinal();
            let what = format!(
                "grid {:?} of {threads} threads with {shared} bytes",
                [x, y, z]
            );
            Error::Launch {
                kernel,
                reason: format!("{what} on cuda:{device}: {}", why(error)),
            }
        })
    }

    /// A product by cublasLt and by nothing else, for comparisons; `None` without the library, or
    /// nothing in it for this product.
    ///
    /// # Safety
    ///
    /// As of [`Launcher::submit`].
    pub unsafe fn product_by_library(&self, product: &Product) -> Option<Result<()>> {
        // SAFETY: the caller's promise.
        unsafe { self.product_on(self.stream.cu_stream(), product) }
    }

    /// The same on a stream of this context.
    ///
    /// # Safety
    ///
    /// As of [`Launcher::submit`].
    unsafe fn product_on(&self, stream: sys::CUstream, product: &Product) -> Option<Result<()>> {
        if let Err(error) = self.bind() {
            return Some(Err(error));
        }
        let mut products = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        let products = products.get_or_insert_with(|| {
            Products::open(|bytes| {
                let memory = self.alloc(bytes, false)?;
                Ok((memory.address(), Box::new(memory) as Box<dyn Send>))
            })
        });
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

    /// A kernel of the images, if one of them has it.
    fn find(&self, kernel: &'static str) -> Result<Option<sys::CUfunction>> {
        let name = CString::new(kernel).unwrap_or_default();
        for &module in &self.modules {
            // SAFETY: the module is loaded as long as `self` lives.
            match unsafe { result::module::get_function(module, name.clone()) } {
                Ok(function) => return Ok(Some(function)),
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)) => {}
                // Its code is loaded now, and compiled where the image has none for this device.
                Err(error) => return self.done(kernel, Err(error)),
            }
        }
        Ok(None)
    }

    /// The driver's encoder of tensor maps, if all is there that kernels for compute capability 9.0 need: such a
    /// device and no later one, images with their code (an nvcc before 12.0 makes none), and a driver for CUDA 12.
    fn encoder(&self) -> Result<Option<EncodeTiled>> {
        if self.capability != (9, 0) {
            return Ok(None);
        }
        self.bind()?;
        if self.find("nll90")?.is_none() {
            return Ok(None);
        }
        // Not by cudarc's function of that name, which panics where the driver does not have it.
        // SAFETY: the function has this type since it exists.
        let found = unsafe { sys::culib().get::<EncodeTiled>(b"cuTensorMapEncodeTiled\0") };
        Ok(found.ok().map(|encode| *encode))
    }

    /// A kernel by its name, with the shared memory and the carve-out of its launch.
    fn function(&self, kernel: &'static str, config: LaunchConfig) -> Result<sys::CUfunction> {
        use sys::CUfunction_attribute_enum as Attribute;
        let mut functions = self
            .functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let found = match functions.get(kernel) {
            Some(&found) => Some(found),
            None => self.find(kernel)?.map(|handle| Function {
                handle,
                shared_bytes: SHARED,
                carveout: None,
            }),
        };
        let Some(mut function) = found else {
            return Err(Error::Launch {
                kernel,
                reason: "the embedded images do not have it".into(),
            });
        };
        let set = |attribute, value| {
            // SAFETY: the function is of a loaded module.
            let result = unsafe {
                result::function::set_function_attribute(function.handle, attribute, value)
            };
            self.done(kernel, result)
        };
        if config.shared_bytes > function.shared_bytes {
            set(
                Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                config.shared_bytes as i32,
            )?;
        }
        if config.carveout != function.carveout {
            // −1 is the driver's own choice.
            set(
                Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
                config.carveout.map_or(-1, i32::from),
            )?;
        }
        function.shared_bytes = function.shared_bytes.max(config.shared_bytes);
        function.carveout = config.carveout;
        functions.insert(kernel, function);
        Ok(function.handle)
    }
}

/// A kernel that has been found, and what it has been allowed.
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    shared_bytes: usize,
    carveout: Option<u8>,
}

/// What a launch asks for beyond a grid of blocks. The carve-out is the kernel's: as an attribute of a
/// launch it needs a driver for CUDA 12.5.
fn attributes(config: LaunchConfig) -> Vec<sys::CUlaunchAttribute> {
    use sys::CUlaunchAttributeID as Id;
    let attribute = |id, value| sys::CUlaunchAttribute {
        id,
        pad: [0; 4],
        value,
    };
    let mut attributes = Vec::new();
    if config.cluster != [1; 3] {
        let [x, y, z] = config.cluster;
        let value = sys::CUlaunchAttributeValue {
            clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z },
        };
        attributes.push(attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value));
    }
    if config.pdl {
        let value = sys::CUlaunchAttributeValue {
            programmaticStreamSerializationAllowed: 1,
        };
        attributes.push(attribute(
            Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            value,
        ));
    }
    attributes
}

/// Binds a context to this thread where an error, also an earlier one, cannot be returned.
fn bound(context: &CudaContext) -> bool {
    let _ = context.check_err();
    context.bind_to_thread().is_ok()
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

struct Graph {
    executable: sys::CUgraphExec,
    context: Arc<CudaContext>,
}

// SAFETY: its handle may be used by any thread that has bound the context, one at a time.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if bound(&self.context) {
            // SAFETY: made by `end_capture`, and not used after; if it runs, it goes when it is done.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
    }
}

/// Where memory comes from. The device's own pool returns to the system what is not in use whenever the host
/// waits for the device, and fetches it again for the next buffer; this one keeps it until it goes.
struct Pool(sys::CUmemoryPool);

// SAFETY: a handle that any thread may use.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// The context must be bound.
    fn new(device: sys::CUdevice) -> Result<Self, DriverError> {
        let properties = sys::CUmemPoolProps {
            allocType: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            handleTypes: sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
            location: sys::CUmemLocation {
                type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
                id: device,
            },
            win32SecurityAttributes: std::ptr::null_mut(),
            // Newer toolkits name a largest size here; zero is as much as there is.
            reserved: [0; 64],
        };
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let mut max = u64::MAX;
        // SAFETY: the properties are whole; the attribute is a number of 64 bits.
        unsafe {
            let pool = Pool(result::mem_pool::create(&properties)?);
            result::mem_pool::set_attribute(pool.0, attribute, (&raw mut max).cast())?;
            Ok(pool)
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: created by `new`; memory of it that is still in use keeps it alive.
        let _ = unsafe { result::mem_pool::destroy(self.0) };
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
        if bound(&self.context) {
            // Its handle is of this context.
            let products = self.products.get_mut();
            drop(products.unwrap_or_else(PoisonError::into_inner).take());
            self.pool = None;
            for &module in &self.modules {
                // SAFETY: nothing of it runs any more.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}

fn driver(device: &str, what: &str, error: DriverError) -> Error {
    Error::Device {
        device: device.into(),
        reason: format!("{what}: {}", why(error)),
    }
}

/// What the driver is made for: kernels of a later toolkit it may not take.
fn version() -> String {
    let mut version = 0;
    // SAFETY: writes the number.
    let known = unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .is_ok();
    match known {
        true => format!(
            "a driver for CUDA {}.{}",
            version / 1000,
            version % 1000 / 10
        ),
        false => "a driver of unknown version".into(),
    }
}

/// In the driver's own words.
fn why(error: DriverError) -> String {
    error.error_string().map_or_else(
        |_| format!("{error:?}"),
        |text| text.to_string_lossy().into_owned(),
    )
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
        if bound(self.stream.context()) {
            // SAFETY: allocated on this stream; freed after what was launched on it before.
            let _ = unsafe { result::free_async(self.address, self.stream.cu_stream()) };
        }
    }
}

impl Launcher for Cuda {
    type Memory = CudaMemory;
    type Graph = Recording;

    fn alloc(&self, bytes: usize, zeroed: bool) -> Result<CudaMemory> {
        self.bind()?;
        let stream = self.stream.cu_stream();
        // Never none: an address is always good for copies of nothing.
        let bytes = bytes.max(256);
        let what = format!("no memory of {bytes} bytes");
        // SAFETY: stream and pool live; a reader of the memory has written it, or asked for zeros.
        let address = self.done(&what, unsafe {
            match &self.pool {
                Some(pool) => result::mem_pool::alloc_async(pool.0, bytes, stream),
                None => result::malloc_async(stream, bytes),
            }
        })?;
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
        let (from, to) = (from.place(from_at, bytes)?, to.place(to_at, bytes)?);
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `place` checked both; two pieces do not overlap.
        let result = unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) };
        self.done("copy on the device", result)
    }

    unsafe fn submit(&self, launch: Launch) -> Result<Launch> {
        let stream = self.stream.cu_stream();
        let kernel = match launch {
            Launch::Kernel(kernel) => kernel,
            // SAFETY: the caller's promise.
            Launch::Product(product) => match unsafe { self.product_on(stream, &product) } {
                Some(done) => return done.map(|()| launch),
                None => product.kernel()?,
            },
        };
        // SAFETY: as above.
        unsafe { self.launch(stream, &kernel)? };
        Ok(Launch::Kernel(kernel))
    }

    unsafe fn graph(&self, launches: &[Launch]) -> Result<Recording> {
        // On a stream of its own: other threads continue to queue on the one that there is.
        let aside = self.done("a stream to record on", self.context.new_stream())?;
        let stream = aside.cu_stream();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.done("recording", aside.begin_capture(mode))?;
        let queued = launches.iter().try_for_each(|launch| match launch {
            // SAFETY: the caller's promise.
            Launch::Kernel(kernel) => unsafe { self.launch(stream, kernel) },
            Launch::Product(product) => {
                // SAFETY: as above.
                let done = unsafe { self.product_on(stream, product) };
                // A kernel in its stead might be loaded now, which breaks the recording.
                done.unwrap_or(Err(Error::Launch {
                    kernel: "cublasLtMatmul",
                    reason: "it has no such product any more".into(),
                }))
            }
        });
        // In any case: a capture that is not ended is a leak.
        let recording = self.end_capture(&aside);
        queued?;
        recording
    }

    unsafe fn replay(&self, graph: &Recording) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { Cuda::replay(self, graph) }
    }

    fn box_map(&self, boxed: &Boxed) -> Option<BoxMap> {
        // What failed may be there at the next call.
        let encode = match self.encode.get() {
            Some(&encode) => encode,
            None => {
                let encode = self.encoder().ok()?;
                *self.encode.get_or_init(|| encode)
            }
        };
        // SAFETY: `encoder` found the driver's.
        unsafe { boxed.encoded(encode?) }
    }

    fn processors(&self) -> u32 {
        self.processors
    }

    fn describe(&self) -> String {
        self.name.clone()
    }
}
