// Contexts of the store, and which features fire at each of their tokens.
"use strict";

async function contextsPage(number, run, query) {
  const data = await report.load(`${number}-contexts`);
  const texts = data.tokens.map((ids) => ids.map(tokens.raw).join(""));
  const found = h("ul", { class: "list" });
  const told = h("p", { class: "dim", role: "status" });
  const search = h("input", { type: "search", placeholder: "words of a context", "aria-label": "Search contexts", value: query.get("q") ?? "", input: () => update() });

  function update() {
    const words = search.value.trim();
    const fits = texts.map((text, at) => [text.toLowerCase().indexOf(words.toLowerCase()), at]).filter(([place]) => place >= 0);
    history.replaceState(null, "", `#/sae/${number}/contexts${words ? `?q=${encodeURIComponent(words)}` : ""}`);
    const lines = fits.map(([place, at]) => {
      // As long as it takes to recognise it.
      const text = data.tokens[at].map(tokens.shown).join("");
      const start = words === "" ? 0 : Math.max(0, place - 30);
      return h("li", {}, h("a", { href: `#/sae/${number}/context/${at}` }, h("bdi", {}, text.slice(start, start + 160))));
    });
    found.replaceChildren(...lines);
    told.textContent =
      fits.length > 0
        ? `${format.count(fits.length)} of the ${format.count(texts.length)} contexts in this report; the store has ${format.count(data.of)}.`
        : "None of the contexts in this report has these words. Features of other text would take the language model, which these pages do not have; activation-dump makes a store of any text, and sae-trainer features and report show it.";
  }

  const elements = [h("h1", {}, `Contexts in ${run.name}`), h("p", {}, "Choose a context to see which features fire at each of its tokens."), h("div", { class: "tools" }, search), told, found];
  return { elements, shown: update };
}

async function contextPage(number, run, at, query) {
  const [data, table] = await Promise.all([report.load(`${number}-contexts`), report.load(`${number}-features`)]);
  if (!(at in data.contexts)) throw new Error(`There is no context ${at} in this report, which has ${data.contexts.length}.`);
  const chunk = await report.load(`${number}-contexts-${Math.floor(at / data.chunk)}`);
  const [ids, active, counts] = [data.tokens[at], chunk[at % data.chunk], data.active[at]];
  const panel = h("div", { "aria-live": "polite" });
  const most = Math.max(1, ...counts);
  const buttons = ids.map((id, position) =>
    h("button", { type: "button", title: `${counts[position]} features`, "aria-label": `${tokens.shown(id).replace(/ /g, "␣")}, position ${position}, ${counts[position]} features`, style: heat(counts[position], most), "aria-pressed": "false", click: () => choose(position) }, tokens.shown(id)),
  );

  function choose(position) {
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(at === position)));
    history.replaceState(null, "", `#/sae/${number}/context/${at}?token=${position}`);
    const rows = active[position].map(([j, activation]) => h("tr", {}, h("td", {}, featureName(number, table, j)), h("td", {}, format.number(activation))));
    const shownOf = counts[position] > rows.length ? `; these are the ${rows.length} strongest.` : ".";
    panel.replaceChildren(
      h("h2", {}, "At ", tokenChip(ids[position]), ` position ${position}`),
      h("p", { class: "dim" }, counts[position] === 0 ? "No feature fires." : `${format.count(counts[position])} features fire${shownOf}`),
      rows.length > 0 && h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ["feature", "activation"].map((title) => h("th", { scope: "col" }, title)))), h("tbody", {}, rows))),
    );
  }

  const chosen = Number(query.get("token") ?? "0");
  const elements = [
    h("h1", {}, `Context ${data.contexts[at]} in ${run.name}`),
    h("div", { class: "pager" }, at > 0 && h("a", { href: `#/sae/${number}/context/${at - 1}` }, "← previous"), at + 1 < data.contexts.length && h("a", { href: `#/sae/${number}/context/${at + 1}` }, "next →"), h("a", { href: `#/sae/${number}/contexts` }, "all contexts")),
    h("p", { class: "dim" }, "The colour of a token says how many features fire there; choose one to see them."),
    h("div", { class: "text" }, buttons),
    panel,
  ];
  return { elements, shown: () => chosen in ids && choose(chosen) };
}
