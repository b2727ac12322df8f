//! Mistakes that the stand-in must find, each with what it says of it: a net that catches nothing proves nothing.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};
use prefold::gpu::{Cuda, Kernel, Launch, LaunchConfig, Launcher, Params};

use crate::place::Place;

/// As in `kernels/abi.h`: out = gelu(x).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ActivateParams {
    x: u64,
    out: u64,
    packed: u64,
    rows: u32,
    width: u32,
}

fn kernel(name: &'static str, config: LaunchConfig, params: &[u8]) -> Launch {
    Launch::Kernel(Kernel {
        name,
        config,
        params: Params::new(params),
    })
}

/// Queues a kernel that reads and writes `width` floats.
fn launch(cuda: &Cuda, x: u64, out: u64, width: u32, shared: usize) -> prefold::Result<()> {
    let config = LaunchConfig::new([1; 3], 64).shared(shared);
    launch_by(cuda, config, x, out, width)
}

fn launch_by(
    cuda: &Cuda,
    config: LaunchConfig,
    x: u64,
    out: u64,
    width: u32,
) -> prefold::Result<()> {
    let params = ActivateParams {
        x,
        out,
        packed: 0,
        rows: 1,
        width,
    };
    // SAFETY: of its type; where addresses are wrong, that is what is tested, on no real device.
    unsafe { cuda.submit(kernel("gelu", config, bytemuck::bytes_of(&params)))? };
    Ok(())
}

/// What the complaints of a place must contain, and nothing else is there.
#[track_caller]
fn said(place: &Place, words: &[&str]) {
    let complaints = place.complaints();
    for word in words {
        assert!(
            complaints.contains(word),
            "{word:?} is not in {complaints:?}"
        );
    }
}

#[track_caller]
fn error<T>(result: prefold::Result<T>) -> String {
    match result {
        Ok(_) => panic!("no error"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn work_is_done_when_the_host_waits() {
    let Some(place) = Place::new(90) else { return };
    let cuda = place.open().unwrap();
    let mut x = cuda.alloc(64, false).unwrap();
    let y = cuda.alloc(64, false).unwrap();
    let mut host = [3.0f32; 16];
    cuda.write(&mut x, 0, bytemuck::cast_slice(&host)).unwrap();
    // The copy has taken its bytes already.
    host = [0.0; 16];
    launch(&cuda, cuda.address(&x), cuda.address(&y), 16, 0).unwrap();
    assert_eq!(place.count("launches"), 0);
    cuda.read(&y, 0, bytemuck::cast_slice_mut(&mut host))
        .unwrap();
    assert_eq!(place.count("launches"), 1);
    assert!(host.iter().all(|v| (v - 2.9964).abs() < 1e-3), "{host:?}");
    // What was not written is not a number.
    let z = cuda.alloc(64, false).unwrap();
    cuda.read(&z, 0, bytemuck::cast_slice_mut(&mut host))
        .unwrap();
    assert!(host.iter().all(|v| v.is_nan()));
}

#[test]
fn launches_beyond_the_limits_are_refused() {
    let params = [0u8; 32];
    for (architecture, max) in [(80, 163), (89, 99), (90, 227), (100, 227), (120, 99)] {
        let Some(place) = Place::new(architecture) else {
            return;
        };
        let cuda = place.open().unwrap();
        let x = cuda.alloc(64, true).unwrap();
        let at = cuda.address(&x);
        launch(&cuda, at, at, 16, max << 10).unwrap();
        let line = error(launch(&cuda, at, at, 16, (max << 10) + 1));
        assert!(line.contains("invalid argument"), "{line}");
        said(
            &place,
            &["gelu asks for", "bytes of shared memory, more than sm_"],
        );
        let wrong = |grid: [u32; 3], threads: u32| {
            let config = LaunchConfig {
                grid,
                ..LaunchConfig::new([1; 3], threads)
            };
            // SAFETY: none of these is started.
            error(unsafe { cuda.submit(kernel("gelu", config, &params)) })
        };
        for grid in [[0, 1, 1], [1, 65536, 1], [1, 1, 65536], [1 << 31, 1, 1]] {
            wrong(grid, 64);
            said(&place, &["gelu: a grid of"]);
        }
        wrong([1; 3], 1056);
        said(&place, &["a block of 1056 threads"]);
        wrong([1; 3], 0);
        said(&place, &["a block of 0 threads"]);
        // Its launch bound is less than what a block can have.
        wrong([1; 3], 1024);
        said(&place, &["where its launch bound is"]);
    }
}

/// Clusters, programmatic dependent launch and the carve-out: the same results, recorded too, and the
/// limits of the architecture.
#[test]
fn launches_with_attributes_compute_the_same() {
    let plain = LaunchConfig::new([1, 8, 1], 64);
    let of = |cluster, pdl, carveout| LaunchConfig {
        cluster,
        pdl,
        carveout,
        ..plain
    };
    let configs = [
        plain,
        of([1; 3], true, None),
        of([1, 8, 1], false, None),
        of([1, 4, 1], true, Some(100)),
        of([1; 3], false, Some(0)),
    ];
    let Some(place) = Place::new(90) else { return };
    let cuda = place.open().unwrap();
    let mut x = cuda.alloc(64, true).unwrap();
    cuda.write(&mut x, 0, bytemuck::cast_slice(&[3.0f32; 16]))
        .unwrap();
    let mut first = None;
    for config in configs {
        for recorded in [false, true] {
            let y = cuda.alloc(64, false).unwrap();
            let work = || launch_by(&cuda, config, cuda.address(&x), cuda.address(&y), 16);
            if recorded {
                let recording = cuda.record(work).unwrap();
                // SAFETY: its memory is there.
                unsafe { cuda.replay(&recording) }.unwrap();
            } else {
                work().unwrap();
            }
            let mut host = [0.0f32; 16];
            cuda.read(&y, 0, bytemuck::cast_slice_mut(&mut host))
                .unwrap();
            assert_eq!(&host, first.get_or_insert(host), "{config:?}");
        }
    }
    // The carve-out belongs to the kernel, and is set where it changes.
    assert_eq!(place.count("clusters"), 4);
    assert_eq!(place.count("dependent launches"), 4);
    assert_eq!(place.count("carve-outs"), 2);
    let at = cuda.address(&x);
    for (cluster, words) in [
        ([1, 3, 1], "a grid of 1 x 8 x 1 in clusters of 1 x 3 x 1"),
        ([1, 16, 1], "a cluster of 16 blocks"),
        ([1, 0, 1], "a cluster of 0 blocks"),
    ] {
        error(launch_by(&cuda, of(cluster, false, None), at, at, 16));
        said(&place, &[words]);
    }
    error(launch_by(&cuda, of([1; 3], false, Some(101)), at, at, 16));
    said(&place, &["gelu asks for a carve-out of 101 percent"]);
    let Some(older) = Place::new(89) else { return };
    let cuda = older.open().unwrap();
    let x = cuda.alloc(64, true).unwrap();
    let at = cuda.address(&x);
    for config in [of([1, 2, 1], false, None), of([1; 3], true, None)] {
        error(launch_by(&cuda, config, at, at, 16));
        said(&older, &["which sm_89 does not have"]);
    }
}

#[test]
fn what_is_freed_is_gone() {
    let Some(place) = Place::new(90) else { return };
    let cuda = place.open().unwrap();
    let x = cuda.alloc(64, true).unwrap();
    let gone = {
        let y = cuda.alloc(64, true).unwrap();
        cuda.address(&y)
    };
    launch(&cuda, cuda.address(&x), gone, 16, 0).unwrap();
    let mut host = [0u8; 64];
    let line = error(cuda.read(&x, 0, &mut host));
    assert!(line.contains("illegal memory access"), "{line}");
    said(
        &place,
        &["gelu touched 0x", "where nothing is allocated now"],
    );
    // It stays with the context.
    let line = error(cuda.alloc(64, false));
    assert!(line.contains("illegal memory access"), "{line}");
    drop((x, cuda));
    // A device that is opened anew has a new context.
    place.open().unwrap().alloc(64, true).unwrap();
}

#[test]
fn a_replay_that_uses_freed_memory_is_found() {
    let Some(place) = Place::new(90) else { return };
    let cuda = place.open().unwrap();
    let x = cuda.alloc(64, true).unwrap();
    let y = cuda.alloc(64, true).unwrap();
    let addresses = [cuda.address(&x), cuda.address(&y)];
    launch(&cuda, addresses[0], addresses[1], 16, 0).unwrap();
    let recording = cuda
        .record(|| launch(&cuda, addresses[0], addresses[1], 16, 0))
        .unwrap();
    let mut host = [0u8; 64];
    for _ in 0..3 {
        // SAFETY: its memory is there.
        unsafe { cuda.replay(&recording) }.unwrap();
    }
    cuda.read(&x, 0, &mut host).unwrap();
    assert_eq!((place.count("launches"), place.count("replays")), (4, 3));
    drop(y);
    // SAFETY: it is not there, which is what is tested, on no real device.
    unsafe { cuda.replay(&recording) }.unwrap();
    let line = error(cuda.read(&x, 0, &mut host));
    assert!(line.contains("illegal memory access"), "{line}");
    said(&place, &["gelu touched 0x"]);
}

#[test]
fn a_write_beside_a_piece_is_found() {
    let Some(place) = Place::new(90) else { return };
    let cuda = place.open().unwrap();
    // Pieces have 256 bytes at least.
    let x = cuda.alloc(4096, true).unwrap();
    let y = cuda.alloc(4000, true).unwrap();
    launch(&cuda, cuda.address(&x), cuda.address(&y), 1001, 0).unwrap();
    cuda.read(&x, 0, &mut [0u8; 64]).unwrap();
    said(&place, &["something wrote beside a piece of 4000 bytes"]);
    drop(y);
    cuda.read(&x, 0, &mut [0u8; 64]).unwrap();
    said(&place, &["something wrote beside a piece that is freed"]);
    // Beyond its pages there is nothing.
    launch(&cuda, cuda.address(&x), cuda.address(&x), 1025, 0).unwrap();
    let line = error(cuda.read(&x, 0, &mut [0u8; 64]));
    assert!(line.contains("illegal memory access"), "{line}");
    said(&place, &["gelu touched 0x"]);
}

/// Nothing but launches belongs into a recording; and after one that was broken everything continues.
#[test]
fn a_recording_with_a_wait_in_it_is_broken() {
    let Some(place) = Place::new(90) else { return };
    let cuda = place.open().unwrap();
    let mut x = cuda.alloc(64, true).unwrap();
    let at = cuda.address(&x);
    launch(&cuda, at, at, 16, 0).unwrap();
    let line = error(cuda.record(|| cuda.read(&x, 0, &mut [0u8; 64])));
    assert!(
        line.contains("not permitted when stream is capturing"),
        "{line}"
    );
    said(
        &place,
        &["a copy to pageable memory while a stream is captured"],
    );
    // Even where the mistake was passed over.
    for (mistake, words) in [
        (0, "a copy from pageable memory"),
        (1, "an allocation"),
        (2, "a free"),
    ] {
        let mut more = (mistake == 2).then(|| cuda.alloc(64, false).unwrap());
        let line = error(cuda.record(|| {
            match mistake {
                0 => drop(cuda.write(&mut x, 0, &[1; 64])),
                1 => drop(cuda.alloc(64, false)),
                _ => drop(more.take()),
            }
            let _ = launch(&cuda, at, at, 16, 0);
            Ok(())
        }));
        assert!(line.contains("previous error during capture"), "{line}");
        said(&place, &[words, "while a stream is captured"]);
    }
    // A free that failed stays undone.
    assert_eq!(place.left().matches("pieces").count(), 1);
    // The first use of a kernel loads it.
    let line = error(cuda.record(|| {
        let params = [0u8; 32];
        // SAFETY: it is not started.
        unsafe { cuda.submit(kernel("swiglu", LaunchConfig::new([1; 3], 64), &params))? };
        Ok(())
    }));
    assert!(line.contains("swiglu") || line.contains("images"), "{line}");
    said(
        &place,
        &["the first use of a kernel while a stream is captured"],
    );
    let recording = cuda.record(|| launch(&cuda, at, at, 16, 0)).unwrap();
    // SAFETY: its memory is there.
    unsafe { cuda.replay(&recording) }.unwrap();
    cuda.read(&x, 0, &mut [0u8; 64]).unwrap();
    drop((recording, x, cuda));
    // What the recording kept from being freed.
    assert!(
        place
            .complaints()
            .contains("the context is released with 1 pieces of memory")
    );
}

/// The driver itself, as cudarc calls it: a context and two streams that do not wait for others.
struct Raw {
    context: sys::CUcontext,
    device: sys::CUdevice,
    streams: [sys::CUstream; 2],
}

impl Raw {
    fn new(place: &Place) -> Self {
        result::init().unwrap();
        let device = result::device::get(place.index as i32).unwrap();
        // SAFETY: the device exists; the context is bound here and in `bind`.
        let context = unsafe { result::primary_ctx::retain(device) }.unwrap();
        let raw = Raw {
            context,
            device,
            streams: [std::ptr::null_mut(); 2],
        };
        raw.bind();
        let stream = || result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
        Raw {
            streams: [stream(), stream()],
            ..raw
        }
    }

    fn bind(&self) {
        // SAFETY: the context lives.
        unsafe { result::ctx::set_current(self.context) }.unwrap();
    }

    fn stream(&self, which: usize) -> sys::CUstream {
        self.streams[which]
    }

    fn end(self) {
        // SAFETY: all were created by `new`.
        unsafe {
            for stream in self.streams {
                result::stream::destroy(stream).unwrap();
            }
            result::primary_ctx::release(self.device).unwrap();
        }
    }
}

// SAFETY: handles, which any thread may use that has bound the context.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

#[track_caller]
fn gives<T>(result: Result<T, DriverError>, code: CUresult) {
    assert_eq!(result.err().map(|error| error.0), Some(code));
}

const THREAD_LOCAL: sys::CUstreamCaptureMode =
    sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

#[test]
fn memory_is_used_by_its_rules() {
    let Some(place) = Place::new(90) else { return };
    let Some(other) = Place::new(90) else { return };
    let raw = Raw::new(&place);
    let [stream, second] = raw.streams;
    // SAFETY: mistakes on no real device.
    unsafe {
        let at = result::malloc_async(stream, 1000).unwrap();
        let host = [7u8; 1000];
        gives(
            result::memcpy_htod_async(at + 1, &host, stream),
            CUresult::CUDA_ERROR_INVALID_VALUE,
        );
        gives(
            result::memcpy_dtod_async(at, at + 8, 100, stream),
            CUresult::CUDA_ERROR_INVALID_VALUE,
        );
        gives(
            result::memset_d8_async(at - 256, 0, 16, stream),
            CUresult::CUDA_ERROR_INVALID_VALUE,
        );
        gives(
            result::free_async(at + 256, stream),
            CUresult::CUDA_ERROR_INVALID_VALUE,
        );
        said(
            &place,
            &[
                "cuMemcpyHtoDAsync of 1000 bytes",
                "a copy onto itself",
                "cuMemsetD8Async",
                "a free of what is not",
            ],
        );
        // Another stream knows nothing of the allocation yet, until an event says so.
        let mut seen = [0, 0];
        for _ in 0..60 {
            let fresh = result::malloc_async(stream, 256).unwrap();
            let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).unwrap();
            result::event::record(event, stream).unwrap();
            result::stream::wait_event(
                second,
                event,
                sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT,
            )
            .unwrap();
            result::memset_d8_async(fresh, 1, 256, second).unwrap();
            result::memset_d8_async(at, 2, 256, second).unwrap();
            // Two streams without an event: the fill of the other one may be there or not.
            let mut first = [0u8; 4];
            result::memcpy_dtoh_async(&mut first, at, stream).unwrap();
            result::stream::synchronize(stream).unwrap();
            seen[usize::from(first == [2; 4])] += 1;
            result::stream::synchronize(second).unwrap();
            result::memset_d8_async(at, 0, 256, second).unwrap();
            result::stream::synchronize(second).unwrap();
            result::free_async(fresh, second).unwrap();
            result::event::destroy(event).unwrap();
        }
        assert!(seen[0] > 3 && seen[1] > 3, "{seen:?}");
        result::free_async(at, stream).unwrap();
        gives(
            result::free_async(at, stream),
            CUresult::CUDA_ERROR_INVALID_VALUE,
        );
        gives(
            result::memset_d8_async(at, 0, 16, stream),
            CUresult::CUDA_ERROR_INVALID_VALUE,
        );
        place.complaints();
        gives(
            result::malloc_async(stream, 1 << 40),
            CUresult::CUDA_ERROR_OUT_OF_MEMORY,
        );
        // Streams and contexts of another device, and none.
        let elsewhere = Raw::new(&other);
        gives(
            result::malloc_async(stream, 16),
            CUresult::CUDA_ERROR_INVALID_HANDLE,
        );
        said(&other, &["a stream of another context"]);
        elsewhere.end();
        result::ctx::set_current(std::ptr::null_mut()).unwrap();
        gives(
            result::malloc_async(stream, 16),
            CUresult::CUDA_ERROR_INVALID_CONTEXT,
        );
        // The device that the thread had last.
        said(&other, &["without a context"]);
        raw.bind();
        gives(
            result::malloc_async(std::ptr::null_mut(), 16),
            CUresult::CUDA_ERROR_NOT_SUPPORTED,
        );
        said(&place, &["on the legacy stream"]);
    }
    raw.end();
}

/// In the order of streams alone: what another one allocates is not there yet.
#[test]
fn memory_is_there_in_its_streams_order() {
    let Some(place) = Place::new(90) else { return };
    let mut found = 0;
    for _ in 0..60 {
        let raw = Raw::new(&place);
        let [stream, second] = raw.streams;
        // SAFETY: mistakes on no real device.
        unsafe {
            let fresh = result::malloc_async(stream, 256).unwrap();
            result::memset_d8_async(fresh, 1, 256, second).unwrap();
            match result::stream::synchronize(second) {
                Ok(()) => result::free_async(fresh, stream).unwrap(),
                Err(error) => {
                    assert_eq!(error.0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
                    found += 1;
                }
            }
        }
        raw.end();
        place.complaints();
    }
    assert!(found > 3, "{found}");
}

#[test]
fn captures_are_kept_to_their_rules() {
    let Some(place) = Place::new(90) else { return };
    let raw = Raw::new(&place);
    let [stream, second] = raw.streams;
    let fill = |stream| {
        // SAFETY: the memory is there until the end.
        unsafe { result::memset_d8_async(ADDRESS.get().copied().unwrap(), 1, 16, stream) }
    };
    static ADDRESS: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    // SAFETY: mistakes on no real device.
    unsafe {
        ADDRESS
            .set(result::malloc_async(stream, 256).unwrap())
            .unwrap();
        result::stream::synchronize(stream).unwrap();
        let begin = || result::stream::begin_capture(stream, THREAD_LOCAL).unwrap();
        let invalid = || {
            gives(
                result::stream::end_capture(stream),
                CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
            )
        };
        // Waiting, in every form, from this thread.
        begin();
        fill(stream).unwrap();
        gives(
            result::stream::synchronize(stream),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
        );
        gives(
            fill(stream),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
        );
        invalid();
        begin();
        gives(
            result::ctx::synchronize(),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
        );
        invalid();
        // And of the whole context from another one.
        begin();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                raw.bind();
                fill(raw.stream(1)).unwrap();
                result::stream::synchronize(raw.stream(1)).unwrap();
                gives(
                    result::ctx::synchronize(),
                    CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                );
            });
            thread.join().unwrap();
        });
        invalid();
        said(
            &place,
            &[
                "cuCtxSynchronize while a stream is captured",
                "cuStreamSynchronize of that stream",
            ],
        );
        // An event of a capture.
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).unwrap();
        begin();
        result::event::record(event, stream).unwrap();
        gives(
            result::event::query(event),
            CUresult::CUDA_ERROR_CAPTURED_EVENT,
        );
        invalid();
        // Another stream that is drawn in and does not come back.
        begin();
        fill(stream).unwrap();
        result::event::record(event, stream).unwrap();
        let wait = |stream, event| {
            result::stream::wait_event(
                stream,
                event,
                sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT,
            )
            .unwrap();
        };
        wait(second, event);
        fill(second).unwrap();
        gives(
            result::stream::end_capture(stream),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
        );
        // One that does.
        begin();
        result::event::record(event, stream).unwrap();
        wait(second, event);
        fill(second).unwrap();
        result::event::record(event, second).unwrap();
        wait(stream, event);
        let graph = result::stream::end_capture(stream).unwrap();
        result::graph::destroy(graph).unwrap();
        // By another thread, of another stream, and of none.
        begin();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                raw.bind();
                let ended = result::stream::end_capture(raw.stream(0));
                gives(ended, CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
            });
            thread.join().unwrap();
        });
        gives(
            result::stream::end_capture(second),
            CUresult::CUDA_ERROR_INVALID_VALUE,
        );
        let graph = result::stream::end_capture(stream).unwrap();
        let executable =
            result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)).unwrap();
        result::graph::destroy(graph).unwrap();
        gives(
            result::graph::destroy(graph),
            CUresult::CUDA_ERROR_INVALID_VALUE,
        );
        // In flight it may be destroyed, once.
        result::graph::launch(executable, stream).unwrap();
        result::graph::exec_destroy(executable).unwrap();
        gives(
            result::graph::launch(executable, stream),
            CUresult::CUDA_ERROR_INVALID_VALUE,
        );
        result::event::destroy(event).unwrap();
        result::free_async(*ADDRESS.get().unwrap(), stream).unwrap();
        result::stream::synchronize(stream).unwrap();
    }
    raw.end();
    said(
        &place,
        &[
            "ended by another thread",
            "before another stream has joined it",
            "cuGraphLaunch of no executable graph",
        ],
    );
}

/// What is not freed is said when the context goes.
#[test]
fn leaks_are_found() {
    let Some(place) = Place::new(90) else { return };
    let cuda = Arc::new(place.open().unwrap());
    let leaked = cuda.alloc(64, true).unwrap();
    assert!(
        place
            .left()
            .contains("8 modules, 1 pools, 1 pieces of memory"),
        "{}",
        place.left()
    );
    std::mem::forget(leaked);
    drop(cuda);
    // The piece has kept its stream, and that the context.
    assert_eq!(
        place.left(),
        "1 retained contexts, 1 streams, 1 pieces of memory"
    );
    let device = result::device::get(place.index as i32).unwrap();
    // SAFETY: it is not used any more.
    unsafe { result::primary_ctx::release(device) }.unwrap();
    said(
        &place,
        &["the context is released with 1 streams, 1 pieces of memory"],
    );
}

/// Tests run beside each other, each on a device of its own: none fails for what another did.
#[test]
fn a_thread_without_a_context_is_held_against_its_own_device() {
    let (Some(place), Some(other)) = (Place::new(90), Place::new(90)) else {
        return;
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            drop(place.open().unwrap());
            let device = result::device::get(place.index as i32).unwrap();
            // SAFETY: the context is gone, which the driver must refuse.
            assert!(unsafe { result::primary_ctx::release(device) }.is_err());
        });
    });
    assert_eq!(other.complaints(), "");
    said(&place, &["a context is released that is not retained"]);
}
