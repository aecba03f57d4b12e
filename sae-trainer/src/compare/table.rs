//! The table of finished runs.

use human_units::format_count;
use terminal::{foreign, foreign_path};

use crate::report::table::{columns, grouped, number, share};
use crate::runs::record::Summary;

/// The table of finished runs.
pub(crate) fn table(summaries: &[Summary]) -> String {
    let head = [
        "run",
        "loss",
        "features",
        "tokens",
        "L0",
        "MSE centered",
        "MSE uncentered",
        "MSE sum",
        "explained variance",
        "dead",
        "tokens/s",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(summaries.iter().map(row));
    let of_first = summaries.first().map(|summary| summary.evaluation.evaluated_on);
    let kind = match of_first {
        Some(kind) if summaries.iter().all(|summary| summary.evaluation.evaluated_on == kind) => kind.words(),
        _ => {
            // Figures of rows that training saw are better than those of rows that it did not see.
            rows[0].push("evaluated on".to_owned());
            for (row, summary) in rows[1..].iter_mut().zip(summaries) {
                row.push(summary.evaluation.evaluated_on.words().to_owned());
            }
            "rows"
        }
    };
    let rows_evaluated: Vec<u64> = summaries.iter().map(|s| s.evaluation.rows).collect();
    let (least, most) = (rows_evaluated.iter().min(), rows_evaluated.iter().max());
    let evaluated = match (least, most) {
        (Some(least), Some(most)) if least == most => grouped(*least),
        (Some(least), Some(most)) => format!("{} to {}", grouped(*least), grouped(*most)),
        _ => "no".into(),
    };
    format!("{}evaluated on {evaluated} {kind}; dead: silent in all of them\n", columns(&rows))
}

fn row(summary: &Summary) -> Vec<String> {
    let metrics = &summary.evaluation.metrics;
    vec![
        foreign_path(&summary.run).to_string(),
        penalty(summary),
        grouped(summary.features as u64),
        format_count(summary.tokens as f64),
        number(metrics.l0),
        number(metrics.mse_centered),
        number(metrics.mse_uncentered),
        number(metrics.mse_sum),
        share(metrics.explained_variance),
        grouped(metrics.dead_features as u64),
        format_count(summary.session.tokens_per_second.round()),
    ]
}

/// The penalty and its coefficient, if it has one.
pub(super) fn penalty(summary: &Summary) -> String {
    match summary.coefficient {
        0.0 => foreign(&summary.loss).to_string(),
        coefficient => format!("{} {coefficient:e}", foreign(&summary.loss)),
    }
}
