// One feature: how often and how strongly it fires, where, with which others, and what it does.
"use strict";

async function featurePage(number, run, j) {
  const table = await report.load(`${number}-features`);
  if (!Number.isInteger(j) || j < 0 || j >= table.features) throw new Error(`There is no feature ${j}: the autoencoder has ${format.count(table.features)}, counted from 0.`);
  if (j >= table.density.length) throw new Error(`Feature ${j} is not in this report, which has the first ${format.count(table.density.length)}.`);
  const chunk = await report.load(`${number}-features-${Math.floor(j / table.chunk)}`);
  const feature = chunk[j % table.chunk];
  const kinds = kindsOf(table.kinds[j]);
  const pager = h("div", { class: "pager" }, j > 0 && link(number, j - 1, "← previous"), j + 1 < table.density.length && link(number, j + 1, "next →"));
  const maximum = table.maximum[j];
  const head = [
    h("h1", {}, `Feature ${j} of ${run.name} `, kinds.map((kind) => h("span", { class: "tag" }, kind))),
    pager,
    facts(number, run, table, feature, j),
  ];
  if (table.firings[j] === 0) return [...head, h("p", {}, "It fires in none of these rows."), lists(number, table, feature, j)];
  return [
    ...head,
    h("div", { class: "figures" }, figure(histogramFigure(feature, maximum)), figure(positionFigure(feature))),
    lists(number, table, feature, j),
    excerptSection("Largest activations, a context once", feature.top, maximum),
    ...feature.samples.map(({ of, excerpts }) => excerptSection(sampleTitle(of), excerpts, maximum)),
  ].filter(Boolean);
}

// Left and right arrow go to the neighbours by number.
addEventListener("keydown", (event) => {
  const { parts } = address();
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (parts[2] === "feature" && step && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const to = Number(parts[3]) + step;
    if (to >= 0) location.hash = `#/sae/${parts[1]}/feature/${to}`;
  }
});

function link(number, j, text) {
  return h("a", { href: `#/sae/${number}/feature/${j}` }, text ?? String(j));
}

// A feature's number and the tokens by which it is known.
function featureName(number, table, j) {
  if (j >= table.density.length) return String(j);
  return h("span", {}, link(number, j), " ", table.tokens[j].slice(0, 3).map(tokenChip));
}

function sampleTitle(of) {
  return of.charAt(0).toUpperCase() + of.slice(1);
}

function facts(number, run, table, feature, j) {
  const rows = [
    ["fires in", `${format.count(table.firings[j])} of ${format.count(run.index.rows)} rows, ${format.percent(table.density[j])}`],
    ["maximum, mean", `${format.number(table.maximum[j])}, ${format.number(table.mean[j])}`],
  ];
  if (feature.quantiles.length > 0) {
    const names = [10, 25, 50, 75, 90];
    rows.push(["quantiles", feature.quantiles.map((value, at) => `${format.number(value)} (${names[at]} %)`).join(", ")]);
    rows.push(["explained by position", format.percent(table.positional[j])]);
    if (table.punctuation[j] !== null) rows.push(["at newlines and punctuation", `${format.percent(table.punctuation[j])} of its activation`]);
  }
  const matches = table.matches.filter(({ feature }) => feature[j] !== null).map(({ run: other, feature, cosine }) => {
    const name = `${feature[j]} of ${overview.runs[other].name}`;
    const target = overview.runs[other].index ? link(other, feature[j], name) : name;
    return h("div", {}, target, ` (cosine ${format.cosine(cosine[j])})`);
  });
  if (matches.length > 0) rows.push(["best match", matches]);
  return h("dl", {}, rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", { class: "numbers" }, value)]));
}

function histogramFigure({ histogram }, maximum) {
  const width = maximum / histogram.length;
  return {
    title: "Activations",
    small: true,
    option: {
      legend: false,
      xAxis: { type: "value", name: "activation", min: 0, max: maximum, axisLabel: { formatter: tick, showMaxLabel: false } },
      yAxis: { type: "log", name: "rows", min: 0.5 },
      tooltip: lineTooltip("activation"),
      // On a logarithmic axis no rows are half a row.
      series: [{ name: "rows", type: "line", step: "middle", showSymbol: false, areaStyle: { origin: "start" }, color: COLOURS[0], data: histogram.map((count, at) => [(at + 0.5) * width, count || 0.5]) }],
    },
  };
}

function positionFigure({ positions }) {
  return {
    title: "Mean activation by position",
    small: true,
    option: {
      legend: false,
      xAxis: { type: "value", name: "position in the context", max: positions.length - 1 },
      yAxis: { type: "value", name: "mean" },
      tooltip: lineTooltip("position"),
      series: [{ name: "mean", type: "line", step: "middle", showSymbol: false, color: COLOURS[1], data: positions.map((mean, at) => [at, mean]) }],
    },
  };
}

function lists(number, table, feature, j) {
  const list = (title, rows) => rows?.length > 0 && h("div", {}, h("h2", {}, title), h("ul", {}, rows.map(([what, value]) => h("li", {}, h("span", {}, what), h("span", { class: "numbers dim" }, value)))));
  const sums = (of) => of.map(([id, firings, mean, share]) => [tokenChip(id), `${format.percent(share)}, ${format.count(firings)} × ${format.number(mean)}`]);
  const others = (of, name) => of.map(([other, value]) => [featureName(number, table, other), `${name} ${format.cosine(value)}`]);
  const effects = (of) => of?.map(([id, logit]) => [tokenChip(id), format.number(logit)]);
  return h(
    "div",
    { class: "columns" },
    list("Tokens at which it fires", sums(feature.tokens)),
    list("Tokens before", sums(feature.before)),
    list("Makes more likely", effects(feature.logits?.top)),
    list("Makes less likely", effects(feature.logits?.bottom)),
    list("Fires with", others(feature.cofiring, "Jaccard")),
    list("Nearest decoder rows", others(feature.neighbours, "cosine")),
  );
}
