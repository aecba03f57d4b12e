// Text with activations.
"use strict";

function heat(activation, maximum) {
  return activation > 0 ? `background:rgba(var(--heat),${(0.12 + 0.68 * Math.min(1, activation / maximum)).toFixed(3)})` : undefined;
}

// An excerpt: [context, position, first position shown, tokens, [[place, activation], …]].
function excerptLine([context, position, start, ids, active], maximum) {
  const activations = new Map(active);
  const spans = ids.map((id, at) => {
    const activation = activations.get(at) ?? 0;
    const title = `${tokens.shown(id)} · position ${start + at}${activation > 0 ? ` · ${format.number(activation)}` : ""}`;
    return h("span", { title, style: heat(activation, maximum), class: start + at === position && "peak" }, tokens.shown(id));
  });
  const value = activations.get(position - start) ?? 0;
  const place = h("span", { class: "numbers", title: `context ${context}, position ${position}` }, format.number(value));
  return h("div", { class: "excerpt" }, place, h("div", { class: "text" }, spans));
}

function excerptSection(title, excerpts, maximum) {
  if (excerpts.length === 0) return null;
  return h("section", { "data-sample": title }, h("h2", {}, title), excerpts.map((excerpt) => excerptLine(excerpt, maximum)));
}
