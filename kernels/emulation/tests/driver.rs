//! The emulated driver refuses what a real one refuses, and notices what a real one would not.
//!
//! The ignored tests run on the emulated driver, in processes of their own that the other tests start.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{
    self, CUevent_flags, CUevent_wait_flags, CUgraphInstantiate_flags, CUresult, CUstream,
    CUstreamCaptureMode,
};
use emulation::EmulatedDriver;

fn lazy() -> EmulatedDriver {
    EmulatedDriver::new().with("MODE", "lazy")
}

/// The driver with a context that is current.
fn set_up() {
    result::init().unwrap();
    let device = result::device::get(0).unwrap();
    // SAFETY: the device is valid, and its context is never released.
    unsafe { result::ctx::set_current(result::primary_ctx::retain(device).unwrap()) }.unwrap();
}

fn stream() -> CUstream {
    result::stream::create(result::stream::StreamKind::NonBlocking).unwrap()
}

fn event() -> sys::CUevent {
    result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING).unwrap()
}

fn refused<T>(what: Result<T, DriverError>) -> CUresult {
    what.err().map_or(CUresult::CUDA_SUCCESS, |error| error.0)
}

const WAIT: CUevent_wait_flags = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
const RELAXED: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;

#[test]
fn captures_have_their_rules() {
    lazy().pass_test("what_a_capture_refuses");
}

#[test]
#[ignore = "started on the emulated driver"]
fn what_a_capture_refuses() {
    set_up();
    let (a, b, outside, inside) = (stream(), stream(), event(), event());
    // SAFETY: all handles are alive, and so is the memory.
    unsafe {
        let memory = result::malloc_sync(1000).unwrap();
        result::event::record(outside, b).unwrap();

        // Waiting for the host is no part of a graph.
        result::stream::begin_capture(a, RELAXED).unwrap();
        let told = refused(result::stream::synchronize(a));
        assert_eq!(told, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        let told = refused(result::stream::end_capture(a));
        assert_eq!(told, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

        // Nor is what other streams did before.
        result::stream::begin_capture(a, RELAXED).unwrap();
        let told = refused(result::stream::wait_event(a, outside, WAIT));
        assert_eq!(told, CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
        assert!(result::stream::end_capture(a).is_err());

        // A captured event is a node, not a point in time.
        result::stream::begin_capture(a, RELAXED).unwrap();
        result::event::record(inside, a).unwrap();
        assert_eq!(refused(result::event::synchronize(inside)), CUresult::CUDA_ERROR_CAPTURED_EVENT);
        assert!(result::stream::end_capture(a).is_err());

        // What is forked has to be joined,
        let fork = |join: bool| {
            result::stream::begin_capture(a, RELAXED).unwrap();
            result::memset_d8_async(memory, 1, 1000, a).unwrap();
            result::event::record(inside, a).unwrap();
            result::stream::wait_event(b, inside, WAIT).unwrap();
            result::memset_d8_async(memory, 2, 500, b).unwrap();
            if join {
                result::event::record(inside, b).unwrap();
                result::stream::wait_event(a, inside, WAIT).unwrap();
            }
            result::stream::end_capture(a)
        };
        assert_eq!(refused(fork(false)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
        // and then runs in the order that it was captured in.
        let graph = result::graph::instantiate(fork(true).unwrap(), CUgraphInstantiate_flags(0)).unwrap();
        result::graph::launch(graph, a).unwrap();
        result::stream::synchronize(a).unwrap();
        let mut bytes = [0u8; 1000];
        result::memcpy_dtoh_sync(&mut bytes, memory).unwrap();
        assert!(bytes[..500] == [2; 500] && bytes[500..] == [1; 500]);

        // Other modes forbid more.
        let strict = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
        result::stream::begin_capture(a, strict).unwrap();
        let told = refused(result::malloc_sync(10));
        assert_eq!(told, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        assert!(result::stream::end_capture(a).is_err());
    }
}

#[test]
fn handles_threads_and_ranges_are_checked() {
    lazy().pass_test("what_is_refused_outside_of_captures");
}

#[test]
#[ignore = "started on the emulated driver"]
fn what_is_refused_outside_of_captures() {
    // SAFETY: handles that are gone are the point: this driver looks for them.
    unsafe {
        assert_eq!(refused(result::malloc_sync(10)), CUresult::CUDA_ERROR_NOT_INITIALIZED);
        set_up();
        let elsewhere = std::thread::spawn(|| refused(result::malloc_sync(10))).join().unwrap();
        assert_eq!(elsewhere, CUresult::CUDA_ERROR_INVALID_CONTEXT);
        let gone = stream();
        result::stream::destroy(gone).unwrap();
        assert_eq!(refused(result::stream::synchronize(gone)), CUresult::CUDA_ERROR_INVALID_HANDLE);
        let memory = result::malloc_sync(100).unwrap();
        let told = refused(result::memset_d8_async(memory + 50, 0, 51, stream()));
        assert_eq!(told, CUresult::CUDA_ERROR_INVALID_VALUE);
        result::free_sync(memory).unwrap();
        assert_eq!(refused(result::free_sync(memory)), CUresult::CUDA_ERROR_INVALID_VALUE);
        let told = refused(result::module::load_data([0u8; 100].as_ptr().cast()));
        assert_eq!(told, CUresult::CUDA_ERROR_INVALID_IMAGE);
    }
}

/// Runs an ignored test, in which the driver has to end the process and to say why.
fn ends(test: &str, why: &str) {
    let output = lazy().run_test(test);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains(&format!("emulated driver: {why}")), "{test}: {told}");
}

#[test]
fn what_a_real_driver_would_not_notice_ends_the_process() {
    ends("the_host_reads_device_memory", "the host touches device memory");
    ends("a_copy_from_memory_that_is_not_pinned", "an upload of 100 bytes with memory that is not pinned");
    ends("pinned_memory_is_freed_too_early", "pinned memory was freed while an upload is queued");
}

#[test]
#[ignore = "started on the emulated driver"]
fn the_host_reads_device_memory() {
    set_up();
    // SAFETY: there is none: the process ends here.
    unsafe {
        let memory = result::malloc_sync(100).unwrap();
        println!("{}", *(memory as *const u8));
    }
}

#[test]
#[ignore = "started on the emulated driver"]
fn a_copy_from_memory_that_is_not_pinned() {
    set_up();
    // SAFETY: memory and stream are alive.
    unsafe { result::memcpy_htod_async(result::malloc_sync(100).unwrap(), &[0u8; 100], stream()) }.unwrap();
}

#[test]
#[ignore = "started on the emulated driver"]
fn pinned_memory_is_freed_too_early() {
    set_up();
    // SAFETY: there is none: the process ends when the memory is freed.
    unsafe {
        let pinned = result::malloc_host(100, 0).unwrap();
        let bytes = std::slice::from_raw_parts(pinned.cast::<u8>(), 100);
        result::memcpy_htod_async(result::malloc_sync(100).unwrap(), bytes, stream()).unwrap();
        result::free_host(pinned).unwrap();
    }
}

#[test]
fn what_is_not_given_back_is_reported() {
    let output = lazy().with("LEAKS", "1").run_test("something_is_left");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(86), "{told}");
    assert!(
        told.contains("1 allocations") && told.contains("1 streams") && told.contains("1 events"),
        "{told}"
    );
}

#[test]
#[ignore = "started on the emulated driver"]
fn something_is_left() {
    set_up();
    stream();
    event();
    // SAFETY: nobody uses the memory.
    unsafe { result::malloc_sync(100) }.unwrap();
}
