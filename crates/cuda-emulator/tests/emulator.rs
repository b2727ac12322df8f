//! A kernel with and without faults, and the stand-in driver's rules.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};

use cuda_emulator::{Emulator, Error, Launch, Order, Schedule, StandIn, compile};
use libloading::Library;

const RIGHT: u32 = 0;
const NO_BARRIER: u32 = 1;
const DIVERGENT_BARRIER: u32 = 2;
const PAST_THE_END: u32 = 3;

const ORDERS: [Order; 3] = [Order::Ascending, Order::Descending, Order::Random(1)];

fn out() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// None without a C++ compiler, which only a machine that runs all tests must have.
fn kernels() -> Option<PathBuf> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reverse.cu");
    match compile(&unit, &[], out()) {
        Err(Error::Platform) => None,
        Err(Error::NoCompiler(which)) if std::env::var_os("CI").is_none() => {
            eprintln!("skipped: no C++ compiler ({which})");
            None
        }
        built => Some(built.unwrap()),
    }
}

fn x() -> Vec<u8> {
    (0..64).flat_map(|i| (i as f32).to_ne_bytes()).collect()
}

fn reversed() -> Vec<u8> {
    let rows = (0..64).rev();
    rows.flat_map(|i| (i as f32).to_ne_bytes()).collect()
}

/// As `ReverseParams`.
fn params(x: u64, y: u64, fault: u32) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&x.to_ne_bytes());
    bytes[8..16].copy_from_slice(&y.to_ne_bytes());
    bytes[16..20].copy_from_slice(&fault.to_ne_bytes());
    bytes
}

fn run(order: Order, fault: u32) -> Option<cuda_emulator::Result<Vec<u8>>> {
    let schedule = Schedule { order, late: true };
    // SAFETY: made by `compile`.
    let emulator = unsafe { Emulator::open(&kernels()?, schedule) }.unwrap();
    let mut from = emulator.alloc(256, false).unwrap();
    from.write(0, &x()).unwrap();
    let to = emulator.alloc(256, false).unwrap();
    let params = params(from.address(), to.address(), fault);
    let launch = Launch {
        kernel: "reverse",
        grid: [1; 3],
        block: 64,
        cluster: [1; 3],
        shared_bytes: 256,
        params: &params,
    };
    // SAFETY: the kernel's parameters; its fault stays within the guards.
    let done = unsafe { emulator.launch(&launch) };
    Some(done.map(|()| {
        let mut got = vec![0; 256];
        to.read(0, &mut got).unwrap();
        got
    }))
}

#[test]
fn a_right_kernel_gives_one_result_in_every_order() {
    for order in ORDERS {
        let Some(got) = run(order, RIGHT) else { return };
        assert_eq!(got.unwrap(), reversed(), "{order:?}");
    }
}

#[test]
fn each_fault_is_found() {
    for order in ORDERS {
        let Some(got) = run(order, NO_BARRIER) else {
            return;
        };
        assert_ne!(got.unwrap(), reversed(), "{order:?}: NaN was not read");
        let report = |fault| run(order, fault).unwrap().unwrap_err().to_string();
        let divergent = report(DIVERGENT_BARRIER);
        assert!(
            divergent.contains("40 threads wait for a barrier at reverse.cu:"),
            "{divergent}"
        );
        let past = report(PAST_THE_END);
        assert!(
            past.contains("wrote outside a buffer of 256 bytes"),
            "{past}"
        );
    }
}

#[test]
fn a_kernel_that_does_not_compile_is_reported() {
    let unit = out().join("broken.cu");
    std::fs::write(&unit, "#include \"cuda_emulator.h\"\nint broken( {\n").unwrap();
    match compile(&unit, &[], out()) {
        Err(Error::Compile(report)) => assert!(report.contains("broken.cu:2"), "{report}"),
        Err(Error::NoCompiler(_) | Error::Platform) => {}
        other => panic!("{other:?}"),
    }
}

/// The calls of a program, by the driver's C interface alone.
#[test]
fn the_stand_in_driver_runs_kernels_late_and_counts_what_is_left() {
    let Some(kernels) = kernels() else { return };
    let folder = match StandIn::build(out()) {
        Err(Error::Platform) => return,
        built => built.unwrap(),
    };
    let stand_in = StandIn::load(&folder, &kernels).unwrap();
    let device = stand_in.device(90, 4, 1 << 20);
    // SAFETY: the stand-in, which is loaded already.
    let cuda = unsafe { Library::new(folder.join("libcuda.so")) }.unwrap();
    macro_rules! call {
        ($name:literal, ($($type:ty),*), $($argument:expr),*) => {{
            // SAFETY: the types of cuda.h.
            unsafe {
                let function = cuda
                    .get::<unsafe extern "C" fn($($type),*) -> c_int>(concat!($name, "\0").as_bytes())
                    .unwrap();
                function($($argument),*)
            }
        }};
    }
    type Handle = *mut c_void;
    let mut handle = [std::ptr::null_mut::<c_void>(); 4];
    let [context, module, function, stream] = &mut handle;
    assert_eq!(call!("cuInit", (c_uint), 0), 0);
    let index = device.index() as c_int;
    assert_eq!(
        call!(
            "cuDevicePrimaryCtxRetain",
            (*mut Handle, c_int),
            context,
            index
        ),
        0
    );
    assert_eq!(call!("cuCtxSetCurrent", (Handle), *context), 0);
    assert_eq!(call!("cuStreamCreate", (*mut Handle, c_uint), stream, 1), 0);
    let image = c"stand-in image of reverse";
    assert_eq!(
        call!(
            "cuModuleLoadData",
            (*mut Handle, *const c_char),
            module,
            image.as_ptr()
        ),
        0
    );
    assert_eq!(
        call!(
            "cuModuleGetFunction",
            (*mut Handle, Handle, *const c_char),
            function,
            *module,
            c"reverse".as_ptr()
        ),
        0
    );
    let (mut from, mut to) = (0u64, 0u64);
    for address in [&mut from, &mut to] {
        assert_eq!(
            call!(
                "cuMemAllocAsync",
                (*mut u64, usize, Handle),
                address,
                256,
                *stream
            ),
            0
        );
    }
    let x = x();
    assert_eq!(
        call!(
            "cuMemcpyHtoDAsync_v2",
            (u64, *const u8, usize, Handle),
            from,
            x.as_ptr(),
            256,
            *stream
        ),
        0
    );
    let mut params = params(from, to, RIGHT);
    let mut pointers = [params.as_mut_ptr()];
    assert_eq!(
        call!(
            "cuLaunchKernel",
            (
                Handle,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
                Handle,
                *mut *mut u8,
                Handle
            ),
            *function,
            1,
            1,
            1,
            64,
            1,
            1,
            256,
            *stream,
            pointers.as_mut_ptr(),
            std::ptr::null_mut()
        ),
        0
    );
    // Queued, not executed: the host has not waited.
    assert_eq!(device.count("launches"), 0);
    let mut got = [0u8; 256];
    assert_eq!(
        call!(
            "cuMemcpyDtoHAsync_v2",
            (*mut u8, u64, usize, Handle),
            got.as_mut_ptr(),
            to,
            256,
            *stream
        ),
        0
    );
    assert_eq!(call!("cuStreamSynchronize", (Handle), *stream), 0);
    assert_eq!(device.count("launches"), 1);
    assert_eq!(got.as_slice(), reversed());
    assert_eq!(device.complaints(), "");
    let left = device.left();
    assert!(left.contains("memory") || left.contains("bytes"), "{left}");
    // A call that is told to fail does, and once.
    device.fail("cuMemFreeAsync", 1, 700);
    assert_eq!(call!("cuMemFreeAsync", (u64, Handle), from, *stream), 700);
    assert_eq!(device.calls(), [("cuMemFreeAsync".to_owned(), 1)]);
}
