//! Some contexts of the store, with the features that fire at each of their tokens.

use anyhow::Result;
use half::f16;
use serde_json::{Value, json};
use terminal::Interrupt;

use super::data::{Data, short};
use super::subjects::Indexed;
use crate::command::arguments::ReportArguments;
use crate::report::progress::proceed;

/// Contexts whose features are in one script.
const CHUNK: usize = 8;
/// Features that are shown of a token, those with the largest activations.
const SHOWN: usize = 24;

/// Writes the contexts of the autoencoder with this number, evenly spread over those of its index.
pub(super) fn write(
    arguments: &ReportArguments,
    number: usize,
    indexed: &Indexed,
    data: &mut Data,
    interrupt: &Interrupt,
) -> Result<()> {
    proceed(interrupt)?;
    let index = &indexed.index;
    let (all, length) = (index.record.contexts, index.record.context_length);
    let count = usize::try_from(arguments.contexts).map_or(all, |count| count.min(all));
    let chosen: Vec<usize> = (0..count).map(|at| at * all / count).collect();
    let mut slots = vec![None; all];
    chosen.iter().enumerate().for_each(|(slot, context)| slots[*context] = Some(slot));
    let mut active: Vec<Vec<(u32, f32)>> = vec![Vec::new(); count * length];
    index.each_firing(|feature, place, bits| {
        if let Some(slot) = slots[place / length] {
            let activation = f16::from_bits(bits).to_f32();
            active[slot * length + place % length].push((feature as u32, activation));
        }
    })?;
    let tokens = index.tokens()?;
    let own = |context: &usize| &tokens[context * length..(context + 1) * length];
    data.put(
        &format!("{number}-contexts"),
        &json!({
            "of": all,
            "chunk": CHUNK,
            "contexts": chosen,
            "tokens": chosen.iter().map(own).collect::<Vec<_>>(),
            "active": active.chunks(length.max(1)).map(|of| of.iter().map(Vec::len).collect::<Vec<_>>()).collect::<Vec<_>>(),
        }),
    )?;
    for (at, chunk) in active.chunks_mut((CHUNK * length).max(1)).enumerate() {
        let written: Vec<Value> = chunk.iter_mut().map(|of| strongest(of)).collect();
        let contexts: Vec<&[Value]> = written.chunks(length.max(1)).collect();
        data.put(&format!("{number}-contexts-{at}"), &contexts)?;
    }
    Ok(())
}

/// The features of a token by their activation, the largest first.
fn strongest(of: &mut [(u32, f32)]) -> Value {
    of.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    of.iter().take(SHOWN).map(|(feature, a)| json!([feature, short(f64::from(*a))])).collect()
}
