//! How much fits on a device at once.

use crate::ModelConfig;

/// Memory that a run takes on a device, roughly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// Bytes of intermediate results for one token.
    pub(crate) token: u64,
    /// Bytes for a pair of tokens of a context: attention scores, where they are not fused away.
    pub(crate) pair: u64,
}

impl Work {
    /// What a block holds at once: the residual stream before and behind it and a norm's result, queries,
    /// keys and values twice (the turned ones too), the MLP's hidden layer three times (gate, up, product),
    /// all of it as if float32, and the outputs.
    pub(crate) fn of(config: &ModelConfig, hooks: usize) -> Work {
        let heads = 2 * (config.heads + 2 * config.kv_heads) * config.head_dim;
        let numbers = 4 * config.d_model + heads + 3 * config.d_mlp + hooks * config.d_model;
        Work { token: 4 * numbers as u64, pair: 8 * config.heads as u64 }
    }

    /// Contexts that half of `free` bytes take, at least one and at most 65,536 tokens. The other half is for
    /// ONNX Runtime's arena, which grows by doubling.
    pub(crate) fn contexts(self, length: usize, free: u64) -> usize {
        let context = length as u64 * (self.token + self.pair * length as u64);
        let most = (65_536 / length.max(1)).max(1);
        usize::try_from(free / 2 / context.max(1)).unwrap_or(most).clamp(1, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batch_of_a_device_fits_half_its_memory_and_is_bounded() {
        // GPT-2-small's sizes: about 12 * 768 numbers of 4 bytes a token.
        let work = Work { token: 84_480, pair: 96 };
        assert_eq!(work.contexts(128, 80 << 30), 512);
        assert_eq!(work.contexts(128, 1 << 30), 43);
        assert_eq!(work.contexts(128, 0), 1);
        assert_eq!(work.contexts(100_000, 1 << 40), 1);
    }
}
