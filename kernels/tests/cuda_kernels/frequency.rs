//! The window of firing frequencies and its penalties.

use emulation::EmulatedDevice;
use example_steps::numbers;
use kernels::cpu::frequency::FrequencyWindow;
use kernels::cpu::sparsity::frequency_terms;
use kernels::cuda::launch::Slice;
use kernels::cuda::launch::frequency::{WindowFeatures, frequency_parts};
use kernels::cuda::launch::report::{REPORT_PARTS, ReportRows};
use kernels::loss::{FrequencyPenalty, LossSpec, Mse};
use kernels::outcome::Terms;

use crate::case::{BELOW_TARGET, SCALAR_BYTES, begun};

#[test]
fn frequencies_and_slopes_equal_the_cpus_as_batches_come_and_go() {
    follow_the_cpu((0.0, 0.0));
    follow_the_cpu((0.03, 0.0));
    follow_the_cpu((0.02, 0.01));
}

/// With these coefficients of the mean density and of the mean logarithmic density.
fn follow_the_cpu((mean_density, log_density): (f64, f64)) {
    const FEATURES: usize = 300;
    const LENGTH: usize = 4;
    let rows = 40;
    let frequency = |coefficient, target| Some(FrequencyPenalty { coefficient, target });
    let loss = LossSpec {
        min_sparsity: frequency(1e-3, 0.1),
        max_sparsity: frequency(2e-3, 0.6),
        mean_density,
        log_density,
        ..LossSpec::reconstruction(Mse::Sum)
    };
    let mut device = EmulatedDevice::new();
    let targets =
        device.holding(&[1e-3f64, 0.1, 2e-3, 0.6, 1.0, 1.0, mean_density / 300.0, log_density / 300.0]);
    let window = device.holding(&[0u32; 6]);
    let arrived = device.holding(&[0u32; 2]);
    let report_parts = device.room::<f64>(REPORT_PARTS);
    let scalars = device.holding(&[0u8; SCALAR_BYTES]);
    let (levels, summed) = (device.room::<f64>(LENGTH), device.room::<u32>(LENGTH));
    let (changes, ring) = (device.room::<u32>(LENGTH), device.room::<u32>(LENGTH * FEATURES));
    let (sums, fired) = (device.holding(&[0u32; FEATURES]), device.holding(&[7u64; FEATURES]));
    let (frequencies, slopes) = (device.room::<f32>(FEATURES), device.room::<f32>(FEATURES));
    let parts = device.room::<f64>(frequency_parts(FEATURES));
    let zeros = device.holding(&vec![0.0f64; 64]);
    let mut expected = FrequencyWindow::new(LENGTH, rows, FEATURES);
    let mut since = vec![7u64; FEATURES];
    // Densities that make outliers of what came before, then of themselves; batches in which nothing fires.
    for (t, scale) in [3.0, 4.0, 40.0, 3.0, 3.5, 0.0, 3.0, 0.0, 0.0, 40.0, 40.0, 2.0].into_iter().enumerate()
    {
        let counts: Vec<u32> =
            numbers(FEATURES, 50 + t as u64).iter().map(|v| (v.abs() * scale) as u32).collect();
        let device_counts = device.holding(&counts);
        let report = begun(&mut device);
        // The batch as it is reported: no error, and in its first rows as many active features as a row can have.
        let total: u32 = counts.iter().sum();
        let mut results = vec![[0u32; 8]; rows];
        for (row, result) in results.iter_mut().enumerate() {
            result[3] = total.saturating_sub((row * FEATURES) as u32).min(FEATURES as u32);
        }
        let results = device.holding(&results.concat());
        let report_rows = ReportRows {
            results: &results,
            squared: &zeros,
            centered: &zeros,
            column_sum: &zeros,
            parts: &report_parts,
            arrived: (&arrived).into(),
            rows,
            width: 64,
            mse: Mse::Sum,
            training: true,
            scalars: &scalars,
            window: &window,
            levels: &levels,
            summed: &summed,
            change_list: &changes,
            window_length: LENGTH,
            report: &report,
        };
        report_rows.launch(&mut device).unwrap();
        let window_features = WindowFeatures {
            counts: &device_counts,
            window: &window,
            change_list: &changes,
            ring: &ring,
            sums: &sums,
            frequencies: &frequencies,
            slopes: &slopes,
            steps_since_fired: &fired,
            partial: &parts,
            arrived: Slice { buffer: &arrived, offset: 4 },
            features: FEATURES,
            rows,
            window_length: LENGTH,
            targets: &targets,
            densities: (mean_density, log_density) != (0.0, 0.0),
            scalars: &scalars,
            report: &report,
        };
        window_features.launch(&mut device).unwrap();

        expected.push(&counts);
        let mut expected_slopes = vec![0.0; FEATURES];
        let mut terms = Terms::default();
        frequency_terms(&loss, &expected, rows, FEATURES, &mut terms, &mut expected_slopes);
        let expected_frequencies: Vec<f32> = (0..FEATURES).map(|j| expected.frequency(j) as f32).collect();
        assert_eq!(frequencies.numbers::<f32>(), expected_frequencies, "batch {t}");
        for (got, expected) in slopes.numbers::<f32>().iter().zip(&expected_slopes) {
            assert!((got - expected).abs() <= 1e-6 * expected.abs(), "batch {t}: {got} {expected}");
        }
        let reported: Vec<f64> = bytemuck::pod_collect_to_vec(&report.numbers::<u8>()[16..56]);
        let [loss, _, _, min, max] = reported[..] else { unreachable!("five numbers") };
        assert!((min - terms.min_sparsity).abs() <= 1e-12 * terms.min_sparsity, "batch {t}");
        assert!((max - terms.max_sparsity).abs() <= 1e-12 * terms.max_sparsity, "batch {t}");
        let density: f64 = bytemuck::pod_read_unaligned(&report.numbers::<u8>()[128..136]);
        assert!((density - terms.density).abs() <= 1e-12 * terms.density.abs(), "batch {t}");
        assert_eq!(loss, min + max + density);
        assert_eq!(arrived.numbers::<u32>(), [0, 0], "counters are ready for the next batch");
        assert_eq!(report.numbers::<u32>()[BELOW_TARGET], terms.below_target as u32, "batch {t}");
        let update = |since: &mut u64, count: &u32| *since = if *count > 0 { 0 } else { *since + 1 };
        since.iter_mut().zip(&counts).for_each(|(since, count)| update(since, count));
        assert_eq!(fired.numbers::<u64>(), since, "batch {t}");
    }
}
