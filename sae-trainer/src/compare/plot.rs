//! Finished runs in one picture: L0 against error, how often features fire, and L0 and error over the course of training.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use human_units::format_count;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use terminal::foreign_path;

use super::table::penalty;
use crate::report::table::{number, share};
use crate::runs::folder::{LoggedStep, logged_steps};
use crate::runs::record::Summary;

/// Sizes in pixels: the picture's width, the height of the four panels together, and that of a line of the legend.
const WIDTH: u32 = 1280;
const PANELS: u32 = 900;
const LEGEND_LINE: u32 = 22;
const FONT: &str = "sans-serif";
const GREY: RGBColor = RGBColor(150, 150, 150);
/// M. Okabe and K. Ito's colours, which the colour-blind can tell apart too; more runs take hues around the circle.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A run with its course and its colour.
struct Run<'a> {
    summary: &'a Summary,
    steps: Vec<LoggedStep>,
    colour: RGBAColor,
}

/// Writes the picture of `summaries` to `path` as SVG.
///
/// # Errors
/// If there is no run to draw, a run's log cannot be read, or `path` cannot be written.
pub(crate) fn write(summaries: &[Summary], path: &Path) -> Result<()> {
    ensure!(!summaries.is_empty(), "there is no finished run to plot");
    let runs = summaries.iter().enumerate().map(|(at, summary)| {
        Ok(Run { summary, steps: logged_steps(&summary.run)?, colour: colour(at, summaries.len()) })
    });
    let svg = picture(&runs.collect::<Result<Vec<_>>>()?)
        .map_err(|error| anyhow!("cannot plot the runs: {error}"))?;
    std::fs::write(path, svg).with_context(|| format!("cannot write {}", foreign_path(path)))
}

fn colour(at: usize, of: usize) -> RGBAColor {
    match COLOURS.get(at) {
        Some(colour) if of <= COLOURS.len() => colour.to_rgba(),
        _ => HSLColor(at as f64 / of as f64, 0.7, 0.42).to_rgba(),
    }
}

fn picture(runs: &[Run<'_>]) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    {
        let height = PANELS + LEGEND_LINE * (runs.len() as u32 + 1);
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let (panels, names) = root.split_vertically(PANELS);
        let panels = panels.split_evenly((2, 2));
        front(&panels[0], runs)?;
        frequencies(&panels[1], runs)?;
        course(&panels[2], runs, "L0 of the batches", |step| step.l0)?;
        course(&panels[3], runs, "centered MSE of the batches", |step| step.mse_centered)?;
        legend(&names, runs)?;
        root.present()?;
    }
    Ok(svg)
}

/// Runs of one kind differ at most in their coefficient: together they form a front.
fn kind<'a>(run: &Run<'a>) -> (&'a str, usize, u64) {
    (&run.summary.loss, run.summary.features, run.summary.tokens)
}

/// L0 and error of every run on rows of the store; runs of one kind are joined.
fn front(area: &Area<'_>, runs: &[Run<'_>]) -> Result<(), Box<dyn Error>> {
    let place = |run: &Run<'_>| {
        let metrics = &run.summary.evaluation.metrics;
        (metrics.l0, metrics.mse_centered)
    };
    // A run whose error is undefined has no place in the plot.
    let runs: Vec<&Run<'_>> =
        runs.iter().filter(|run| place(run).0.is_finite() && place(run).1.is_finite()).collect();
    let x = with_margin(runs.iter().map(|run| place(run).0));
    let y = with_margin(runs.iter().map(|run| place(run).1));
    let middle = (x.start + x.end) / 2.0;
    let mut chart =
        panel(area, "Active features and error of the finished autoencoders").build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("L0")
        .y_desc("centered MSE")
        .x_label_formatter(&|x| number(*x))
        .y_label_formatter(&|y| number(*y))
        .draw()?;

    let mut kinds: Vec<_> = runs.iter().map(|run| kind(run)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for of in kinds {
        let mut points: Vec<_> = runs.iter().filter(|run| kind(run) == of).map(|run| place(run)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        chart.draw_series(LineSeries::new(points, &GREY))?;
    }
    for run in runs {
        // Names keep within the panel.
        let (side, shift) = if place(run).0 < middle { (HPos::Left, 8) } else { (HPos::Right, -8) };
        let style = (FONT, 12).into_text_style(area).pos(Pos::new(side, VPos::Center));
        let point = EmptyElement::at(place(run))
            + Circle::new((0, 0), 5, run.colour.filled())
            + Text::new(shown(&penalty(run.summary)), (shift, -9), style);
        chart.draw_series([point])?;
    }
    Ok(())
}

/// The share of features by how often they fire.
fn frequencies(area: &Area<'_>, runs: &[Run<'_>]) -> Result<(), Box<dyn Error>> {
    let shares = |run: &Run<'_>| -> Vec<(f64, f64)> {
        let features = run.summary.features as f64;
        run.summary
            .evaluation
            .log10_frequency
            .bins()
            .map(|(at, count)| (at, count as f64 / features))
            .collect()
    };
    let most = runs.iter().flat_map(&shares).map(|(_, share)| share).fold(0.0, f64::max);
    let mut chart =
        panel(area, "How often features fire").build_cartesian_2d(-10.0..0.0, 0.0..most.max(1e-3) * 1.05)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("log10 of the share of rows, -10 for none")
        .y_desc("share of features")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| number(*y))
        .draw()?;
    for run in runs {
        // Steps: every bin from its lower end to the next one's.
        let mut line = Vec::new();
        for (at, share) in shares(run) {
            line.extend([(at, share), (at + run.summary.evaluation.log10_frequency.bin_width, share)]);
        }
        chart.draw_series(LineSeries::new(line, run.colour.stroke_width(2)))?;
    }
    Ok(())
}

/// A metric over the rows trained on, on a logarithmic scale.
fn course(
    area: &Area<'_>,
    runs: &[Run<'_>],
    title: &str,
    metric: impl Fn(&LoggedStep) -> f64,
) -> Result<(), Box<dyn Error>> {
    // Values that are not positive have no place on the scale.
    let points = |run: &Run<'_>| -> Vec<(f64, f64)> {
        let points = run.steps.iter().map(|step| (step.tokens as f64, metric(step)));
        points.filter(|(_, value)| value.is_finite() && *value > 0.0).collect()
    };
    let all: Vec<_> = runs.iter().flat_map(&points).collect();
    let tokens = all.iter().map(|point| point.0).fold(1.0, f64::max);
    let least = all.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let most = all.iter().map(|point| point.1).fold(0.0, f64::max);
    let range = if all.is_empty() { 0.1..1.0 } else { least / 1.1..most * 1.1 };
    let mut chart = panel(area, title).build_cartesian_2d(0.0..tokens, range.log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("tokens trained on")
        .x_label_formatter(&|x| format_count(*x))
        .y_label_formatter(&|y| number(*y))
        .draw()?;
    for run in runs {
        chart.draw_series(LineSeries::new(points(run), run.colour.stroke_width(2)))?;
    }
    Ok(())
}

/// One line for each run.
fn legend(area: &Area<'_>, runs: &[Run<'_>]) -> Result<(), Box<dyn Error>> {
    for (at, run) in runs.iter().enumerate() {
        let y = (LEGEND_LINE * at as u32 + LEGEND_LINE / 2) as i32;
        area.draw(&Rectangle::new([(60, y - 5), (84, y + 5)], run.colour.filled()))?;
        let metrics = &run.summary.evaluation.metrics;
        let text = format!(
            "{}: L0 {}, centered MSE {}, explained variance {}, {} dead of {} features",
            shown(&run.summary.run.to_string_lossy()),
            number(metrics.l0),
            number(metrics.mse_centered),
            share(metrics.explained_variance),
            metrics.dead_features,
            run.summary.features
        );
        area.draw(&Text::new(text, (94, y - 7), (FONT, 14).into_font()))?;
    }
    Ok(())
}

/// Text from a file or a path as XML can hold it; what XML gives a meaning the backend writes as entities.
fn shown(text: &str) -> String {
    terminal::foreign(text).to_string().replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}")
}

fn panel<'a, 'b>(area: &'a Area<'b>, title: &str) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder.caption(title, (FONT, 18)).margin(14).x_label_area_size(44).y_label_area_size(76);
    builder
}

/// From the least to the most, a tenth of the distance added at both ends.
fn with_margin(values: impl Iterator<Item = f64> + Clone) -> Range<f64> {
    let least = values.clone().fold(f64::INFINITY, f64::min);
    let most = values.fold(f64::NEG_INFINITY, f64::max);
    if least > most {
        return 0.0..1.0; // nothing to show
    }
    // A single run has no distance: its point stands in the middle.
    let margin = if most > least { (most - least) / 10.0 } else { (most.abs() / 10.0).max(1e-9) };
    least - margin..most + margin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_margin_surrounds_all_values_also_a_single_one() {
        assert_eq!(with_margin([10.0, 20.0].into_iter()), 9.0..21.0);
        assert_eq!(with_margin([10.0].into_iter()), 9.0..11.0);
        assert!(with_margin([0.0].into_iter()).contains(&0.0));
        assert_eq!(with_margin([].into_iter()), 0.0..1.0);
    }

    #[test]
    fn every_run_has_a_colour_of_its_own() {
        for count in [1, 7, 8, 30] {
            let mut colours: Vec<_> = (0..count).map(|at| format!("{:?}", colour(at, count))).collect();
            colours.sort();
            colours.dedup();
            assert_eq!(colours.len(), count);
        }
    }
}
