//! Buffers that are too short for a launch.

use emulation::EmulatedDevice;
use kernels::cuda::launch::Slice;
use kernels::cuda::launch::dense::{HalvesOrder, Split};
use kernels::cuda::launch::widen::Widen;
use kernels::error::DeviceError;

use crate::case::REPORT_BYTES;

#[test]
fn a_short_buffer_is_refused_with_the_argument_and_both_sizes() {
    let mut device = EmulatedDevice::new();
    let (from, out) = (device.room::<u16>(100), device.room::<f32>(100));
    let launch =
        |device: &mut EmulatedDevice, numbers| Widen { from: &from, out: &out, numbers }.launch(device);
    launch(&mut device, 100).unwrap();
    let error = launch(&mut device, 101).unwrap_err();
    let short = DeviceError::ShortBuffer { kernel: "widen", argument: "in", found: 200, needed: 202 };
    assert_eq!(error, short);
    assert_eq!(error.to_string(), "widen takes 202 bytes as `in`, but the buffer has 200 from there on");
    // A part of a buffer ends where the buffer does.
    let report = device.holding(&[0u8; REPORT_BYTES]);
    let (matrix, halves) = (device.room::<f32>(128), device.room::<u16>(128));
    let split = |offset| Split {
        from: Slice { buffer: &matrix, offset },
        out: &halves,
        lines: 1,
        stride: 64,
        order: HalvesOrder::High,
        report: &report,
    };
    split(4 * 64).launch(&mut device).unwrap();
    for offset in [4 * 64 + 4, 4 * 128 + 4] {
        let found = (4 * 128usize).saturating_sub(offset);
        let short = DeviceError::ShortBuffer { kernel: "split", argument: "in", found, needed: 256 };
        assert_eq!(split(offset).launch(&mut device), Err(short));
    }
    let launched = device.launched.into_iter().collect::<Vec<_>>();
    assert_eq!(launched, [("split", 1), ("widen", 1)], "nothing was launched that was refused");
}
