// Figures, drawn by ECharts as SVG: hover shows values, the legend hides series, and each can be saved.
"use strict";

// M. Okabe and K. Ito's colours, which the colour-blind can tell apart too.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#7f7f7f"];

// The colour of one of several runs: more than the list has take hues around the circle.
function colour(at, of) {
  return of <= COLOURS.length ? COLOURS[at] : `hsl(${Math.round((360 * at) / of)}, 65%, 47%)`;
}

const charts = {
  // Those on the page, with what draws them again in other colours.
  shown: [],
  clear() {
    for (const { chart } of charts.shown) chart.dispose();
    charts.shown = [];
  },
  redraw() {
    for (const { chart, option } of charts.shown) chart.setOption(themed(option), { notMerge: true });
  },
  resize() {
    for (const { chart } of charts.shown) chart.resize();
  },
};

function themed(option) {
  const style = getComputedStyle(document.documentElement);
  const [text, dim, line] = ["--text", "--dim", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = (given) => ({
    nameTextStyle: { color: dim },
    nameGap: 26,
    nameLocation: "middle",
    axisLabel: { color: dim, formatter: given.type === "log" || given.type === "value" ? tick : undefined },
    axisLine: { lineStyle: { color: line } },
    splitLine: { lineStyle: { color: line, opacity: 0.6 } },
    ...given,
  });
  return {
    animation: false,
    textStyle: { color: text, fontFamily: "system-ui, sans-serif" },
    grid: { left: 56, right: 16, top: 14, bottom: option.legend === false ? 44 : 76 },
    tooltip: { trigger: "item", confine: true, backgroundColor: style.getPropertyValue("--ground").trim(), textStyle: { color: text }, ...option.tooltip },
    aria: { enabled: true },
    ...option,
    legend: option.legend === false ? undefined : { type: "scroll", bottom: 0, textStyle: { color: text }, pageTextStyle: { color: dim } },
    xAxis: axis(option.xAxis),
    yAxis: { ...axis(option.yAxis), nameGap: 42 },
  };
}

function tick(value) {
  const size = Math.abs(value);
  if (size >= 1000) return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value);
  return size > 0 && size < 1e-2 ? Number(value.toPrecision(3)).toExponential() : String(Number(value.toPrecision(3)));
}

// A figure with a title, its buttons and a caption. `option` is ECharts', without colours of its own for text and lines.
function figure({ title, caption, option, small }) {
  const holder = h("div", { class: small ? "chart small" : "chart" });
  const name = title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
  const save = {
    SVG: () => download(`${name}.svg`, decodeURIComponent(chart.getDataURL({ type: "svg" }).split(",", 2)[1]), "image/svg+xml"),
    PNG: () => png(chart, (blob) => download(`${name}.png`, blob)),
    CSV: () => download(`${name}.csv`, csv(option), "text/csv"),
  };
  const buttons = Object.entries(save).map(([kind, click]) => h("button", { type: "button", click, "aria-label": `Save ${title} as ${kind}` }, kind));
  const element = h("figure", {}, h("div", { class: "head" }, h("h3", {}, title), buttons), holder, caption && h("figcaption", {}, caption));
  let chart;
  // ECharts measures its holder, which must be on the page.
  requestAnimationFrame(() => {
    if (!holder.isConnected) return;
    chart = echarts.init(holder, null, { renderer: "svg" });
    chart.setOption(themed(option));
    charts.shown.push({ chart, option });
  });
  return element;
}

function png(chart, take) {
  const image = new Image();
  image.onload = () => {
    const canvas = h("canvas", { width: 2 * chart.getWidth(), height: 2 * chart.getHeight() });
    const context = canvas.getContext("2d");
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--ground");
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob(take);
  };
  image.src = chart.getDataURL({ type: "svg" });
}

// The points of all series, a line each.
function csv(option) {
  const field = (value) => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
  const lines = option.series.flatMap((series) =>
    series.data.map((point) => [series.name, ...(Array.isArray(point) ? point : (point.value ?? [point]))].map(field).join(",")),
  );
  return ["series,x,y", ...lines].join("\n") + "\n";
}

// Most series that a tooltip lists.
const LISTED = 16;

// A tooltip for points: the series, and both values under their axes' names.
function pointTooltip(x, y) {
  return {
    formatter: ({ seriesName, value }) => h("div", {}, h("b", {}, seriesName), h("br"), `${x}: ${format.number(value[0])}`, h("br"), `${y}: ${format.number(value[1])}`),
  };
}

// A tooltip for lines: the values of all series near one x.
function lineTooltip(x) {
  return {
    trigger: "axis",
    formatter: (all) => {
      const seen = new Set();
      const first = all.filter(({ seriesName }) => !seen.has(seriesName) && seen.add(seriesName));
      const lines = first.slice(0, LISTED).map(({ seriesName, color, value }) => h("div", {}, h("span", { class: "key", style: `background:${color}` }), `${seriesName}: ${format.number(value[1])}`));
      return h("div", {}, h("b", {}, `${x} ${format.number(first[0].value[0])}`), lines, first.length > LISTED && `and ${first.length - LISTED} more`);
    },
  };
}
