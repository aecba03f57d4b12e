// All features of an autoencoder, to search, sort and filter. The address holds what was chosen.
"use strict";

const ROW_HEIGHT = 32;
// Kinds in words, in the order of their bits.
const KIND_NAMES = { dead: "dead", dense: "dense (over 10 %)", "very-dense": "very dense (over 20 %)", positional: "positional", punctuation: "newline or punctuation", twin: "has a twin" };
const DENSITIES = { "": [0, Infinity], "over 10 %": [0.1, Infinity], "1 to 10 %": [0.01, 0.1], "0.1 to 1 %": [0.001, 0.01], "0.01 to 0.1 %": [1e-4, 1e-3], "below 0.01 %": [0, 1e-4] };
const MATCHED = { "": () => true, "with a match over 0.7": (cosine) => cosine > 0.7, "with no match over 0.5": (cosine) => cosine !== null && cosine < 0.5 };
// Columns: title, by what they sort, and whether large values come first.
const FEATURE_COLUMNS = [
  ["feature", (_, j) => j, false],
  ["density", (t, j) => t.density[j], true],
  ["maximum", (t, j) => t.maximum[j], true],
  ["positional", (t, j) => t.positional[j], true],
  ["strongest tokens", (t, j) => (t.tokens[j].length > 0 ? tokens.raw(t.tokens[j][0]).trim() : "\uffff"), false],
  ["kinds", (t, j) => t.kinds[j], true],
  ["nearest", (t, j) => t.cosine[j] ?? -1, true],
  ["best match", (t, j) => t.matches[0]?.cosine[j] ?? -1, true],
];

function kindsOf(bits) {
  return overview.kinds.filter((_, at) => (bits >> at) & 1);
}

async function browserPage(number, run, query) {
  const table = await report.load(`${number}-features`);
  const count = table.density.length;
  const chosen = (name) => query.get(name) ?? "";
  let shown = [];
  let current = 0;

  const search = h("input", { type: "search", placeholder: "token text or feature number", "aria-label": "Search", value: chosen("q"), input: () => update() });
  const select = (label, name, options) => {
    const element = h("select", { "aria-label": label, change: () => update() }, options.map(([value, text]) => h("option", { value, selected: value === chosen(name) }, text)));
    return element;
  };
  const kind = select("Kind", "kind", [["", "all kinds"], ["alive", "alive"], ...overview.kinds.map((kind) => [kind, KIND_NAMES[kind] ?? kind])]);
  const density = select("Density", "density", Object.keys(DENSITIES).map((name) => [name, name || "any density"]));
  const matched = table.matches.length > 0 && select("Matches in other autoencoders", "match", Object.keys(MATCHED).map((name) => [name, name || `any match in ${overview.runs[table.matches[0].run].name}`]));
  const counted = h("span", { class: "dim numbers", role: "status" });
  let order = chosen("sort") || "feature";

  const titles = FEATURE_COLUMNS.map(([title]) => h("button", { type: "button", click: () => sortBy(title) }, title));
  const body = h("div", { class: "body", tabindex: 0, role: "rowgroup", "aria-label": "Features; arrow keys move, Enter opens", scroll: () => paint(), keydown: move });
  const space = h("div", {});
  body.append(space);

  function sortBy(title) {
    const [name, down] = [order.replace(/^-/, ""), order.startsWith("-")];
    const [, , largestFirst] = FEATURE_COLUMNS.find(([column]) => column === title);
    order = name === title ? (down ? title : `-${title}`) : `${largestFirst ? "-" : ""}${title}`;
    update();
  }

  function update() {
    const words = search.value.trim().toLowerCase();
    const known = words !== "" && tokenMatches(words);
    const [low, high] = DENSITIES[density.value];
    const bit = overview.kinds.indexOf(kind.value);
    const fits = (j) =>
      (words === "" || String(j) === words || table.tokens[j].some((id) => known.has(id))) &&
      (kind.value === "" || (kind.value === "alive" ? table.firings[j] > 0 : (table.kinds[j] >> bit) & 1)) &&
      table.density[j] >= low && table.density[j] < high &&
      (!matched || MATCHED[matched.value](table.matches[0].cosine[j]));
    shown = [];
    for (let j = 0; j < count; j++) if (fits(j)) shown.push(j);
    const [name, down] = [order.replace(/^-/, ""), order.startsWith("-")];
    const [, value] = FEATURE_COLUMNS.find(([title]) => title === name) ?? FEATURE_COLUMNS[0];
    const keys = shown.map((j) => value(table, j));
    const places = shown.map((_, at) => at);
    places.sort((a, b) => (down ? -1 : 1) * (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : 0) || a - b);
    shown = places.map((at) => shown[at]);
    for (const [at, button] of titles.entries()) {
      const sorted = FEATURE_COLUMNS[at][0] === name;
      button.textContent = FEATURE_COLUMNS[at][0] + (sorted ? (down ? " ↓" : " ↑") : "");
    }
    counted.textContent = `${format.count(shown.length)} of ${format.count(table.features)} features${count < table.features ? `, of which the first ${format.count(count)} are in this report` : ""}`;
    remember();
    current = 0;
    space.style.height = `${shown.length * ROW_HEIGHT}px`;
    body.scrollTop = 0;
    paint();
  }

  // Writes the choice into the address, without a new page.
  function remember() {
    const chosen = { q: search.value.trim(), kind: kind.value, density: density.value, match: matched ? matched.value : "", sort: order === "feature" ? "" : order };
    const given = new URLSearchParams(Object.entries(chosen).filter(([, value]) => value !== ""));
    const text = given.toString();
    history.replaceState(null, "", `#/sae/${number}${text ? `?${text}` : ""}`);
  }

  function paint() {
    const first = Math.max(0, Math.floor(body.scrollTop / ROW_HEIGHT) - 8);
    const last = Math.min(shown.length, Math.ceil((body.scrollTop + (body.clientHeight || 600)) / ROW_HEIGHT) + 8);
    const rows = [];
    for (let at = first; at < last; at++) rows.push(row(at));
    body.replaceChildren(space, ...rows);
  }

  function row(at) {
    const j = shown[at];
    const best = table.matches[0];
    const share = table.density[j] > 0 ? Math.max(2, 40 * (1 + Math.log10(table.density[j]) / 6)) : 0;
    return h(
      "a",
      { class: at === current ? "row current" : "row", href: `#/sae/${number}/feature/${j}`, style: `top:${at * ROW_HEIGHT}px`, tabindex: -1 },
      h("span", { class: "numbers" }, String(j)),
      h("span", { class: "numbers" }, format.percent(table.density[j]), h("span", { class: "meter", style: `width:${share}px` })),
      h("span", { class: "numbers" }, format.number(table.maximum[j])),
      h("span", { class: "numbers" }, format.percent(table.positional[j])),
      h("span", {}, table.tokens[j].map(tokenChip)),
      h("span", {}, kindsOf(table.kinds[j]).map((kind) => h("span", { class: "tag" }, kind))),
      h("span", { class: "numbers" }, table.nearest[j] === null ? "–" : `${table.nearest[j]} (${format.cosine(table.cosine[j])})`),
      h("span", { class: "numbers" }, !best || best.feature[j] === null ? "–" : `${best.feature[j]} (${format.cosine(best.cosine[j])})`),
    );
  }

  function move(event) {
    const page = Math.floor(body.clientHeight / ROW_HEIGHT);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key === "Enter" && shown.length > 0) {
      location.hash = `#/sae/${number}/feature/${shown[current]}`;
    } else if (event.key in steps) {
      event.preventDefault();
      current = Math.min(shown.length - 1, Math.max(0, current + steps[event.key]));
      const top = current * ROW_HEIGHT;
      if (top < body.scrollTop) body.scrollTop = top;
      if (top + ROW_HEIGHT > body.scrollTop + body.clientHeight) body.scrollTop = top + ROW_HEIGHT - body.clientHeight;
      paint();
    }
  }

  const dead = table.firings.filter((firings) => firings === 0).length;
  const elements = [
    h("h1", {}, `Features of ${run.name}`),
    h("p", { class: "dim" }, `${format.count(run.index.rows)} rows at ${run.index.hook}, ${format.count(run.index.firings)} activations; ${format.count(dead)} of the features shown never fire in them.`),
    h("div", { class: "tools" }, search, kind, density, matched, counted),
    h("div", { class: "grid", role: "table", "aria-label": "Features" }, h("div", { class: "row titles", role: "row" }, titles.map((title) => h("span", { role: "columnheader" }, title))), body),
  ];
  return { elements, shown: update };
}

// The ids of the tokens whose text contains `words`, or that have that number where there are no texts.
function tokenMatches(words) {
  const found = new Set();
  tokens.texts.forEach((text, id) => {
    if (text.toLowerCase().includes(words)) found.add(id);
  });
  if (tokens.texts.length === 0 && /^#\d+$/.test(words)) found.add(Number(words.slice(1)));
  return found;
}
