//! Rotary positions in a graph.

use crate::attention::Contexts;
use crate::graph::{Graph, Value, int};
use crate::{ModelConfig, Rope, RopeScaling};

/// Angle per position of each pair of components, `[width / 2]`: theta^(-2i / width), stretched as the
/// scaling says.
///
/// Rounded to f32 where `transformers` rounds, because an angle grows with the position and with
/// it a difference in the last digit.
fn frequencies(rope: Rope) -> Vec<f32> {
    let plain = |pair: usize| {
        let exponent = 2.0 * pair as f32 / rope.width as f32;
        1.0 / rope.theta.powf(f64::from(exponent)) as f32
    };
    (0..rope.width / 2).map(|pair| scaled(plain(pair), pair, rope.scaling)).collect()
}

fn scaled(frequency: f32, pair: usize, scaling: RopeScaling) -> f32 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor as f32,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let wavelength = 2.0 * std::f64::consts::PI / f64::from(frequency);
            let ramp = (original_max_positions / wavelength - low_freq_factor)
                / (high_freq_factor - low_freq_factor);
            let kept = ramp.clamp(0.0, 1.0);
            (f64::from(frequency) * (kept + (1.0 - kept) / factor)) as f32
        }
        RopeScaling::Yarn { factor, ramp: [low, high], .. } => {
            let kept = 1.0 - ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            (f64::from(frequency) * (kept + (1.0 - kept) / factor)) as f32
        }
    }
}

/// Cosines and sines of the rotary embedding, `[length, 1, width / 2]` each.
pub(crate) struct Rotation {
    cos: Value,
    sin: Value,
    width: usize,
}

impl Rotation {
    pub(crate) fn new(g: &mut Graph<'_>, rope: Rope, contexts: &Contexts) -> Rotation {
        let frequencies = g.floats(&frequencies(rope));
        let positions = g.op("Cast", &[&contexts.positions], &[int("to", 1)]);
        let axes = g.sizes(&[1, 2]);
        let positions = g.op("Unsqueeze", &[&positions, &axes], &[]);
        let angles = g.op("Mul", &[&positions, &frequencies], &[]);
        let mut wave = |kind: &str| {
            let mut wave = g.op(kind, &[&angles], &[]);
            if let RopeScaling::Yarn { attention_factor, .. } = rope.scaling {
                let factor = g.floats(&[attention_factor as f32]);
                wave = g.op("Mul", &[&wave, &factor], &[]);
            }
            g.product_input(wave)
        };
        Rotation { cos: wave("Cos"), sin: wave("Sin"), width: rope.width }
    }

    /// Cosines and sines, for an operator that turns heads itself.
    pub(crate) fn angles(&self) -> [&str; 2] {
        [&self.cos, &self.sin]
    }

    /// Turns component i of each head against component i + width/2 (the "rotate half" convention of
    /// `transformers`), for i below width/2. `x` and the result hold `[rows, heads * head_dim]`.
    pub(crate) fn apply(
        &self,
        g: &mut Graph<'_>,
        config: &ModelConfig,
        contexts: &Contexts,
        x: &str,
        heads: usize,
    ) -> Value {
        let x = contexts.split(g, x, &[heads, config.head_dim]);
        let (half, rest) = (self.width / 2, config.head_dim - self.width);
        let (first, second, untouched) = if rest == 0 {
            let [first, second] = g.op_n("Split", &[&x], &[int("axis", -1), int("num_outputs", 2)]);
            (first, second, None)
        } else {
            let sizes = g.sizes(&[half, half, rest]);
            let [first, second, rest] = g.op_n("Split", &[&x, &sizes], &[int("axis", -1)]);
            (first, second, Some(rest))
        };
        let first_cos = g.op("Mul", &[&first, &self.cos], &[]);
        let second_sin = g.op("Mul", &[&second, &self.sin], &[]);
        let second_cos = g.op("Mul", &[&second, &self.cos], &[]);
        let first_sin = g.op("Mul", &[&first, &self.sin], &[]);
        let turned_first = g.op("Sub", &[&first_cos, &second_sin], &[]);
        let turned_second = g.op("Add", &[&second_cos, &first_sin], &[]);
        let mut parts = vec![turned_first.as_str(), &turned_second];
        parts.extend(untouched.as_deref());
        g.op("Concat", &parts, &[int("axis", -1)])
    }
}
