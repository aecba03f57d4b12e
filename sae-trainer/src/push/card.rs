//! The model card: what is in a repository, how to load it, and the figures of each run's evaluation.

use super::subject::Subject;

/// The text of `README.md`.
pub(super) fn card(repository: &str, revision: &str, subjects: &[Subject]) -> String {
    let title = repository.rsplit('/').next().unwrap_or(repository);
    let models = base_models(subjects);
    let mut front = "---\nlibrary_name: saelens\ntags:\n- sparse-autoencoder\n- saelens\n".to_owned();
    if let [model] = &models[..] {
        front += &format!("base_model: {model}\n");
    }
    front += "---\n";
    let rows: String = subjects.iter().map(row).collect();
    let id = &subjects[0].id;
    let load = match revision {
        "main" => format!("sae = SAE.from_pretrained(\"{repository}\", \"{id}\")"),
        _ => format!(
            "folder = snapshot_download(\"{repository}\", revision=\"{revision}\", allow_patterns=\"{id}/*\")\nsae = SAE.load_from_disk(folder + \"/{id}\")"
        ),
    };
    let import = match revision {
        "main" => "",
        _ => "from huggingface_hub import snapshot_download\n",
    };
    format!(
        "{front}\n# {title}\n\nSparse autoencoders, in SAELens' format. Each folder is one:\n\n\
         | folder | model | hook | architecture | width | features | trained on | L0 | explained variance | norm of x̂ / norm of x | dead |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n{rows}\n\
         L0 is the mean number of active features of a row. The figures are means over rows that training did not see, where the \
         run held some out.\n\n\
         ```python\n{import}from sae_lens import SAE\n\n{load}\n```\n\n\
         Trained with {}.\n",
        programs(subjects)
    )
}

fn row(subject: &Subject) -> String {
    let config = &subject.config;
    let metadata = &config.metadata;
    let text = |value: &Option<String>| value.as_deref().map_or("–".to_owned(), plain);
    let figures = subject.summary.as_ref().map(|summary| (summary.tokens, &summary.evaluation.metrics));
    let number = |value: Option<f64>, digits: usize| match value {
        Some(value) if value.is_finite() => format!("{value:.digits$}"),
        _ => "–".to_owned(),
    };
    let kind = match config.largest() {
        Some(k) => format!("{} {k}", plain(&config.architecture)),
        None => plain(&config.architecture),
    };
    format!(
        "| {} | {} | {} | {kind} | {} | {} | {} | {} | {} | {} | {} |\n",
        subject.id,
        text(&metadata.model_name),
        text(&metadata.hook_name),
        config.d_in,
        config.d_sae,
        figures.map_or("–".to_owned(), |(tokens, _)| format!(
            "{} rows",
            human_units::format_count(tokens as f64)
        )),
        number(figures.map(|(_, metrics)| metrics.l0), 1),
        number(figures.map(|(_, metrics)| metrics.explained_variance), 4),
        number(figures.map(|(_, metrics)| metrics.l2_ratio), 4),
        figures.map_or("–".to_owned(), |(_, metrics)| metrics.dead_features.to_string()),
    )
}

/// The hub ids of the language models, each once.
fn base_models(subjects: &[Subject]) -> Vec<String> {
    let mut models: Vec<String> = Vec::new();
    for subject in subjects {
        let model = subject.config.metadata.further.get("model").and_then(|model| model.as_str());
        let is_id = |model: &&str| {
            let plain = |part: &str| {
                let legal = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
                legal && part.starts_with(|first: char| first.is_ascii_alphanumeric())
            };
            model.split('/').count() == 2
                && model.split('/').all(plain)
                && !std::path::Path::new(model).exists()
        };
        if let Some(model) = model.filter(is_id)
            && !models.iter().any(|other| other == model)
        {
            models.push(model.to_owned());
        }
    }
    models
}

fn programs(subjects: &[Subject]) -> String {
    let mut programs: Vec<String> = Vec::new();
    for subject in subjects {
        let with = subject.config.metadata.further.get("trained_with").and_then(|with| with.as_str());
        let with = with.map_or("an unknown program".to_owned(), plain);
        if !programs.contains(&with) {
            programs.push(with);
        }
    }
    programs.join(", ")
}

/// A text from a file, as part of a table.
fn plain(text: &str) -> String {
    let shown = |c: char| match c {
        '|' | '`' | '<' | '>' | '[' | ']' | '*' | '\\' => ' ',
        c if c.is_control() => ' ',
        c => c,
    };
    text.chars().take(200).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn a_name_cannot_leave_its_cell() {
        assert_eq!(plain("a|b\n[c](d) `e` <f>"), "a b  c (d)  e   f ");
    }
}
