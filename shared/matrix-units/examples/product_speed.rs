//! Times products on one core: `product_speed [m k n]...` prints milliseconds and multiply-adds a second, medians of nine.

use std::time::Instant;

use matrix_units::{Left, Matrix, MatrixUnits, Out, Parts, Right, Start, multiply, pack_and_multiply};

fn main() {
    let Some(units) = MatrixUnits::get() else {
        println!("no matrix units, or the kernel refuses them");
        return;
    };
    let arguments: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let standard = [512, 768, 3072, 256, 18432, 576, 2048, 768, 768, 2048, 3072, 768, 2048, 576, 1536];
    let sizes = if arguments.is_empty() { &standard[..] } else { &arguments[..] };
    println!(
        "    m      k      n  parts    packed  pack+multiply  pack right    GMAC/s packed  with packing"
    );
    for size in sizes.chunks_exact(3) {
        for parts in [Parts::Three, Parts::Six] {
            time(units, parts, (size[0], size[1], size[2]));
        }
    }
}

fn time(units: MatrixUnits, parts: Parts, (m, k, n): (usize, usize, usize)) {
    let a: Vec<f32> = (0..m * k).map(|i| (i * 7919 % 4001) as f32 * 1e-3 - 2.0).collect();
    let b: Vec<f32> = (0..k * n).map(|i| (i * 104729 % 997) as f32 * 1e-3 - 0.5).collect();
    let mut out = vec![0.0; m * n];
    let left = Left::new(units, parts, (m, k), Matrix::rows(&a, k));
    let mut right = Right::zeros(units, parts, n, k);
    let packing = median(|| right.pack(Matrix::rows(&b, n)));
    let mut space = Left::zeros(units, parts, 0, 0);
    let panels = 0..right.panels();
    let whole = median(|| {
        let out = Out::new(&mut out, m, n);
        pack_and_multiply(Matrix::rows(&a, k), m, &mut space, &right, panels.clone(), Start::Zero, out);
    });
    let packed = median(|| {
        let out = Out::new(&mut out, m, n);
        multiply(&left, 0..left.panels(), &right, panels.clone(), Start::Zero, out);
    });
    let speed = |seconds: f64| (m * k * n) as f64 / seconds * 1e-9;
    println!(
        "{m:5} {k:6} {n:6}  {parts:5?} {:6.2} ms {:11.2} ms {:8.2} ms {:16.0} {:13.0}",
        packed * 1e3,
        whole * 1e3,
        packing * 1e3,
        speed(packed),
        speed(whole)
    );
}

/// Seconds.
fn median(mut body: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..9)
        .map(|_| {
            let start = Instant::now();
            body();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[4]
}
