//! Whether two runs are one.

use super::Settings;

impl Settings {
    /// Where `other` differs, one sentence for each value; what may differ between the parts of a resumed
    /// run is left out.
    pub(crate) fn differences(&self, other: &Settings) -> Vec<String> {
        let mut found = Vec::new();
        compare("", &json(self), &json(other), &mut found);
        // Nothing before the last step depends on how many there are, unless the schedule is stretched.
        let stretched = self.lr_decay_steps > 0 || self.epsilon_scales.len() > 1 || self.cosine.is_some();
        found.retain(|(name, _)| name != "eval_rows" && (name != "steps" || stretched));
        found.into_iter().map(|(_, sentence)| sentence).collect()
    }

    /// An id for a run that begins with these settings: a checksum of all but what may change when it is resumed.
    pub(crate) fn run_id(&self) -> String {
        let mut value = json(self);
        for what_may_change in ["steps", "eval_rows"] {
            value[what_may_change] = serde_json::Value::Null;
        }
        format!("{:08x}", crc32c::crc32c(value.to_string().as_bytes()))
    }
}

pub(super) fn json(settings: &Settings) -> serde_json::Value {
    serde_json::to_value(settings).expect("settings are plain data")
}

/// Walks two JSON values and notes the leaves that differ, with their dotted paths.
fn compare(
    path: &str,
    left: &serde_json::Value,
    right: &serde_json::Value,
    found: &mut Vec<(String, String)>,
) {
    use serde_json::Value;
    if let (Value::Object(left), Value::Object(right)) = (left, right) {
        let names: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
        for name in names {
            let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let value = |side: &serde_json::Map<String, Value>| side.get(name).cloned().unwrap_or_default();
            compare(&below, &value(left), &value(right), found);
        }
    } else if left != right {
        let name = path.trim_start_matches("step.").trim_start_matches("rows.");
        found.push((path.to_owned(), format!("{name} is {left} there and {right} here")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::settings::tests::resolve;

    #[test]
    fn only_length_and_evaluation_may_change_on_resume() {
        let run = resolve(&[]).unwrap();
        let longer = resolve(&["--steps", "100k", "--eval-rows", "5k"]).unwrap();
        assert_eq!(run.differences(&longer), Vec::<String>::new());
        let other = resolve(&["--lr", "1e-3", "--loss", "l1"]).unwrap();
        let sentences = run.differences(&other);
        assert!(sentences.contains(&"lr is 0.0004 there and 0.001 here".to_owned()), "{sentences:?}");
        assert!(sentences.iter().any(|s| s.starts_with("loss.penalty.kind")), "{sentences:?}");
        let decaying = resolve(&["--steps", "100", "--lr-decay-steps", "5"]).unwrap();
        let longer = resolve(&["--steps", "200", "--lr-decay-steps", "5"]).unwrap();
        assert_eq!(decaying.differences(&longer), ["steps is 100 there and 200 here"]);
        let cosine = resolve(&["--steps", "100", "--lr-decay", "cosine"]).unwrap();
        let longer = resolve(&["--steps", "200", "--lr-decay", "cosine"]).unwrap();
        assert_eq!(cosine.differences(&longer), ["steps is 100 there and 200 here"]);
    }

    #[test]
    fn settings_of_older_versions_mean_what_they_meant() {
        let settings = resolve(&["--warmup-steps", "3"]).unwrap();
        let written = json(&settings);
        for name in [
            "init",
            "input_scale",
            "cosine",
            "warmup_from_zero",
            "coefficient_warmup_from_zero",
            "b_enc_init",
        ] {
            assert!(written.get(name).is_none(), "{name} changes the ids of runs that do not use it");
        }
        assert!(written["step"].get("rank_by_decoder_norm").is_none());
        assert!(written["step"].get("panels").is_none());
        assert_eq!(serde_json::from_value::<Settings>(written).unwrap(), settings);
    }
}
