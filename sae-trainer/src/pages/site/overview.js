// Runs side by side: a table, figures, and the settings that differ.
"use strict";

// Columns of the table: title, value of a run, and how it is written.
const RUN_COLUMNS = [
  ["L0", (run) => metric(run, "l0"), format.number],
  ["MSE centered", (run) => metric(run, "mse_centered"), format.number],
  ["MSE sum", (run) => metric(run, "mse_sum"), format.number],
  ["explained variance", (run) => metric(run, "explained_variance"), format.number],
  ["dead", (run) => metric(run, "dead_features"), format.count],
  ["over 10 %", (run) => metric(run, "features_over_10_percent"), format.count],
  ["over 20 %", (run) => metric(run, "features_over_20_percent"), format.count],
  ["CE score", (run) => run.in_model?.ce_score.mean, format.number],
  ["KL", (run) => run.in_model?.kl_reconstructed.mean, format.number],
  ["features", (run) => run.features, format.count],
  ["rows trained on", (run) => run.summary?.tokens, format.count],
];

// Of the evaluation at the end of training, or else of one made since.
function metric(run, name) {
  return run.summary?.evaluation[name] ?? run.on_rows?.[name] ?? null;
}

function overviewPage({ runs, matches, program }) {
  const colours = runs.map((_, at) => colour(at, runs.length));
  return [
    h("h1", {}, runs.length === 1 ? runs[0].name : `${runs.length} autoencoders`),
    h("p", { class: "dim" }, subtitle(runs), ` Written by ${program}.`),
    runTable(runs, colours),
    h("h2", {}, "Figures"),
    h("div", { class: "figures" }, figures(runs, matches, colours).map(figure)),
    matches.length > 0 && h("h2", {}, "Features that two autoencoders have in common"),
    matches.length > 0 && matchTable(runs, matches),
    h("h2", {}, "Settings that differ"),
    settingsTable(runs),
  ].filter(Boolean);
}

function subtitle(runs) {
  const evaluation = runs.find((run) => run.summary)?.summary.evaluation;
  const hooks = [...new Set(runs.map((run) => run.hook).filter(Boolean))].join(", ");
  const rows = evaluation ? ` Evaluated on ${format.count(evaluation.rows)} ${evaluation.evaluated_on.replaceAll("-", " ")}; dead: silent in all of them.` : "";
  return `${hooks ? `Hook ${hooks}.` : ""}${rows}`;
}

function runTable(runs, colours) {
  const columns = RUN_COLUMNS.filter(([, value]) => runs.some((run) => value(run) !== null && value(run) !== undefined));
  let sorted = { column: null, down: false };
  const body = h("tbody", {});
  const titles = [["run", (run) => run.name], ...columns].map(([title, value]) => {
    const button = h("button", { type: "button", click: () => sort(title, value) }, title);
    return h("th", { scope: "col", "data-title": title }, button);
  });

  function sort(title, value) {
    sorted = { column: title, down: sorted.column === title && !sorted.down };
    for (const th of titles) {
      if (th.dataset.title === title) th.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    }
    fill(value);
  }

  function fill(value) {
    const order = runs.map((_, at) => at);
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : (a ?? Infinity) - (b ?? Infinity));
    if (value) order.sort((a, b) => (sorted.down ? -1 : 1) * compare(value(runs[a]), value(runs[b])));
    body.replaceChildren(
      ...order.map((at) => {
        const run = runs[at];
        const name = run.index ? h("a", { href: `#/sae/${at}` }, run.name) : run.name;
        const key = h("span", { class: "key", style: `background:${colours[at]}` });
        return h("tr", {}, h("td", { title: run.folder }, key, name), columns.map(([, value, write]) => h("td", {}, write(value(run)))));
      }),
    );
  }

  fill();
  return h("div", { class: "scroll" }, h("table", { id: "runs" }, h("thead", {}, h("tr", {}, titles)), body));
}

// Where an axis shows these values and what led down to them.
function around(values) {
  return { min: 0, max: 3 * Math.max(...values), axisLabel: { formatter: tick, showMaxLabel: false } };
}

// The figures that the runs have numbers for.
function figures(runs, matches, colours) {
  const line = (of, data, more) => ({ name: of.name, type: "line", showSymbol: false, data, color: colours[runs.indexOf(of)], ...more });
  const trained = runs.filter((run) => run.course);
  const course = (title, name, axis) => ({
    title,
    option: {
      xAxis: { type: "value", name: "rows trained on" },
      yAxis: { type: "log", name: axis },
      tooltip: lineTooltip("rows"),
      series: trained.map((run) => line(run, run.course.tokens.map((at, i) => [at, run.course[name][i]]).filter(([, y]) => y > 0))),
    },
  });
  const all = [];
  const measured = runs.filter((run) => metric(run, "l0") > 0 && metric(run, "mse_centered") > 0);
  if (measured.length > 0) {
    all.push({
      title: "L0 and error along training",
      caption: "A line is the course of a run, by its training batches; the point is the finished autoencoder on rows of the evaluation.",
      option: {
        xAxis: { type: "value", name: "L0", ...around(measured.map((run) => metric(run, "l0"))) },
        yAxis: { type: "value", name: "centered MSE", ...around(measured.map((run) => metric(run, "mse_centered"))) },
        tooltip: pointTooltip("L0", "centered MSE"),
        series: [
          ...trained.map((run) => {
            const points = run.course.l0.map((l0, i) => [l0, run.course.mse_centered[i]]);
            return line(run, points.filter(([x, y]) => x > 0 && y > 0), { lineStyle: { width: 1, opacity: 0.5 } });
          }),
          ...measured.map((run) => ({
            name: run.name, type: "scatter", symbolSize: 11, color: colours[runs.indexOf(run)], data: [[metric(run, "l0"), metric(run, "mse_centered")]],
          })),
        ],
      },
    });
  }
  const inModel = runs.filter((run) => run.in_model);
  if (inModel.length > 0) {
    all.push({
      title: "L0 and cross-entropy score",
      caption: "The share of what zeros at the hook would cost in cross-entropy that the reconstruction keeps.",
      option: {
        xAxis: { type: "log", name: "L0" },
        yAxis: { type: "value", name: "CE score", scale: true },
        tooltip: pointTooltip("L0", "CE score"),
        series: inModel.map((run) => ({
          name: run.name, type: "scatter", symbolSize: 11, color: colours[runs.indexOf(run)], data: [[metric(run, "l0"), run.in_model.ce_score.mean]],
        })),
      },
    });
  }
  if (trained.length > 0) {
    all.push(course("Centered MSE", "mse_centered", "centered MSE"), course("L0", "l0", "L0"), course("L1", "l1", "L1"));
    all.push(densities(trained, line), powerLaws(trained, line));
    const curve = (title, x, y, [nameX, nameY], caption) => ({
      title,
      caption,
      option: {
        xAxis: { type: "value", name: nameX, min: "dataMin", max: "dataMax" },
        yAxis: { type: "value", name: nameY },
        tooltip: lineTooltip(nameX),
        series: trained.filter((run) => run.curves[y].some((value) => value !== 0)).map((run) => line(run, run.curves[x].map((at, i) => [at, run.curves[y][i]]))),
      },
    });
    const curves = [
      curve("Penalty of an activation", "a", "penalty", ["activation a", "p(a)"], "Of each run's own loss, before its coefficient."),
      curve("Derivative of the penalty", "a", "derivative", ["activation a", "p′(a)"]),
      curve("Min-sparsity term", "log10_s", "min_sparsity", ["log₁₀ of the firing frequency", "term of a feature"]),
    ];
    all.push(...curves.filter(({ option }) => option.series.length > 0));
  }
  if (matches.length > 0) all.push(similarities(runs, matches));
  return all;
}

function densities(trained, line) {
  return {
    title: "How often features fire",
    caption: "Features by the logarithm of their frequency, in bins of a quarter; dead ones at −10. Dashed: the target of a min-sparsity term.",
    option: {
      xAxis: { type: "value", name: "log₁₀ of the firing frequency", min: -10.25, max: 0 },
      yAxis: { type: "value", name: "features" },
      tooltip: lineTooltip("log₁₀ frequency"),
      series: trained.map((run) => {
        const { lowest, bin_width, counts } = run.summary.evaluation.log10_frequency;
        const points = counts.map((count, at) => [lowest + (at + (at > 0 ? 0.5 : 0)) * bin_width, count]);
        const target = run.target && { silent: true, symbol: "none", label: { show: false }, lineStyle: { type: "dashed" }, data: [{ xAxis: Math.log10(run.target) }] };
        return line(run, points, { step: "middle", markLine: target || undefined });
      }),
    },
  };
}

function powerLaws(trained, line) {
  const density = (run) => {
    const { lowest, bin_width, counts } = run.summary.evaluation.log10_frequency;
    return counts
      .map((count, at) => {
        const [from, to] = [10 ** (lowest + at * bin_width), 10 ** (lowest + (at + 1) * bin_width)];
        return [Math.sqrt(from * to), count / (to - from)];
      })
      .filter(([s, y], at) => at > 0 && y > 0 && s > 1e-7);
  };
  const fit = ({ slope, intercept, from, to }) => [from, to].map((at) => [10 ** at, 10 ** (intercept + slope * at)]);
  const slopes = trained.filter((run) => run.power_law).map((run) => `${run.name} ${run.power_law.slope.toFixed(2)}`);
  return {
    title: "Frequencies as a power law",
    caption: slopes.length > 0 ? `Slopes of the dashed lines: ${slopes.join(", ")}.` : "Too few bins for a slope.",
    option: {
      xAxis: { type: "log", name: "firing frequency" },
      yAxis: { type: "log", name: "features per unit of frequency" },
      tooltip: pointTooltip("frequency", "features per unit"),
      series: trained.flatMap((run) => [
        line(run, density(run), { showSymbol: true, symbolSize: 5, lineStyle: { width: 1, opacity: 0.4 } }),
        ...(run.power_law ? [line(run, fit(run.power_law), { lineStyle: { type: "dashed", width: 2 } })] : []),
      ]),
    },
  };
}

function similarities(runs, matches) {
  return {
    title: "Best matches of features in other autoencoders",
    caption: "For each feature that fires, the largest cosine of its decoder row with one of the other autoencoder.",
    option: {
      xAxis: { type: "value", name: "cosine", min: 0, max: 1 },
      yAxis: { type: "value", name: "share of the features" },
      tooltip: lineTooltip("cosine"),
      series: matches.map(({ a, b, found }, at) => {
        const { histogram } = found.decoder;
        const data = histogram.map((count, bin) => [-1 + (bin + 0.5) / 20, count / found.compared_a]).filter(([x]) => x > 0);
        return { name: `${runs[a].name} in ${runs[b].name}`, type: "line", step: "middle", showSymbol: false, data, color: colour(at, matches.length) };
      }),
    },
  };
}

function matchTable(runs, matches) {
  const titles = ["features of", "in", "median cosine", "over 0.9", "over 0.8", "over 0.7", "mutual", "no match over 0.5", "median of chance"];
  const rows = matches.map(({ a, b, found }) => {
    const { decoder } = found;
    return [
      runs[a].name, runs[b].name, format.cosine(decoder.median), ...["over_0_9", "over_0_8", "over_0_7"].map((level) => format.percent(decoder[level])),
      format.count(found.mutual), format.count(found.only_in_a.length), format.cosine(decoder.chance),
    ];
  });
  const head = h("thead", {}, h("tr", {}, titles.map((title) => h("th", { scope: "col" }, title))));
  const body = h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell)))));
  return h("div", { class: "scroll" }, h("table", { id: "matches" }, head, body));
}

// The settings by their paths, as `step.loss.coefficient`.
function flat(value, path = "") {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return [[path, JSON.stringify(value)]];
  return Object.entries(value).flatMap(([key, inner]) => flat(inner, path ? `${path}.${key}` : key));
}

function settingsTable(runs) {
  const trained = runs.filter((run) => run.settings);
  const settings = trained.map((run) => new Map(flat(run.settings)));
  const names = [...new Set(settings.flatMap((of) => [...of.keys()]))];
  const differing = names.filter((name) => new Set(settings.map((of) => of.get(name))).size > 1);
  if (trained.length < 2) return h("p", { class: "dim" }, "There is one run alone: ", h("code", {}, trained[0]?.command_line ?? "–"));
  if (differing.length === 0) return h("p", { class: "dim" }, "None.");
  const head = h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "setting"), trained.map((run) => h("th", { scope: "col" }, run.name))));
  const body = differing.map((name) => h("tr", {}, h("td", {}, name), settings.map((of) => h("td", {}, of.get(name) ?? "–"))));
  return h("div", { class: "scroll" }, h("table", { id: "settings" }, head, h("tbody", {}, body)));
}
