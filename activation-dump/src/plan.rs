//! How much of the text to run, and in what portions.

use anyhow::{Result, bail};

use crate::arguments::DumpArguments;
use crate::share::{self, Part, Share};

/// The longest text, in tokens: 2^55, so that neither rounding up to contexts nor the parts of a text leave the 2^56 that a
/// store counts to.
const MOST_TOKENS: u64 = 1 << 55;
/// The longest context that a store takes, in tokens.
const LONGEST_CONTEXT: usize = 1 << 24;

/// The contexts of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DumpPlan {
    /// T, tokens of a context.
    pub(crate) length: usize,
    /// Contexts that this process runs; a text can end earlier.
    pub(crate) contexts: u64,
    /// Contexts per run of the model; 1 until the model is loaded and suggests a number.
    pub(crate) batch: usize,
    /// Which contexts of the text these are.
    pub(crate) share: Share,
    /// The part of the text, and where that was set; `None` for the whole.
    pub(crate) part: Option<(Part, String)>,
}

impl DumpPlan {
    /// The plan that the command line and the environment ask for. `max_length` is the model's longest context, where
    /// it is known.
    pub(crate) fn new(arguments: &DumpArguments, max_length: Option<usize>) -> Result<DumpPlan> {
        let length = arguments.what.context;
        check_length(length, max_length)?;
        for (flag, tokens) in
            [("tokens", arguments.what.tokens), ("skip-tokens", arguments.source.skip_tokens)]
        {
            if tokens > MOST_TOKENS {
                bail!("--{flag} {tokens}: no text is that long");
            }
        }
        if arguments.what.tokens == 0 {
            bail!("--tokens 0: there is nothing to do");
        }
        let variable = |name: &str| std::env::var(name).ok();
        let part = share::part(arguments.source.part, variable)?;
        let total = arguments.what.tokens.div_ceil(length as u64);
        let number = part.as_ref().map(|(part, _)| *part);
        let contexts = Share::of_total(total, number);
        if let Some((part, from)) = part.as_ref().filter(|_| contexts == 0) {
            bail!(
                "part {part} (by {from}) of {total} contexts is empty; ask for more --tokens, or for fewer parts"
            );
        }
        let skipped = arguments.source.skip_tokens.div_ceil(length as u64);
        Ok(DumpPlan { length, contexts, batch: 1, share: Share::new(skipped, number), part })
    }

    /// Tokens of all contexts, BOS included.
    pub(crate) fn tokens(&self) -> u64 {
        self.contexts * self.length as u64
    }
}

/// Refuses contexts that are too short to be of use or too long for the model.
pub(crate) fn check_length(length: usize, max_length: Option<usize>) -> Result<()> {
    match max_length {
        Some(max) if length > max || length < 2 => {
            bail!("--context {length}: this model takes contexts of 2 to {max} tokens")
        }
        _ if !(2..=LONGEST_CONTEXT).contains(&length) => {
            bail!("--context {length}: contexts have 2 to {LONGEST_CONTEXT} tokens")
        }
        _ => Ok(()),
    }
}
