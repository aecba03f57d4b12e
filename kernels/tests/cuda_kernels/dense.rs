//! Matrices for dense products.

use emulation::EmulatedDevice;
use example_steps::numbers;
use kernels::cuda::launch::dense::{HalvesOrder, Split};

use crate::case::REPORT_BYTES;

#[test]
fn halves_of_a_split_matrix_add_up_to_17_bits() {
    let mut device = EmulatedDevice::new();
    let (lines, stride) = (5, 192);
    let values: Vec<f32> = numbers(lines * stride, 5).iter().map(|v| v * v * v * 100.0).collect();
    let report = device.holding(&[0u8; REPORT_BYTES]);
    let from = device.holding(&values);
    let mut split = |order, copies: usize| -> Vec<f32> {
        let out = &device.room::<u16>(copies * lines * stride);
        let split = Split { from: (&from).into(), out, lines, stride, order, report: &report };
        split.launch(&mut device).unwrap();
        out.numbers::<u16>().into_iter().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect()
    };
    let alone = split(HalvesOrder::High, 1);
    let (left, right) = (split(HalvesOrder::LowHighHigh, 3), split(HalvesOrder::HighLowHigh, 3));
    for (at, value) in values.iter().enumerate() {
        let (line, column) = (at / stride, at % stride);
        let of = |halves: &[f32]| [0, 1, 2].map(|part| halves[(3 * line + part) * stride + column]);
        let (high, [low, ..]) = (alone[at], of(&left));
        let rest = value - high - low;
        assert!(rest.abs() <= 2.0f32.powi(-17) * value.abs(), "{value}: {rest}");
        assert_eq!((of(&left), of(&right)), ([low, high, high], [high, low, high]));
    }
}
