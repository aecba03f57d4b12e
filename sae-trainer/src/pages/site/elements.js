// Elements, and numbers and tokens as text.
"use strict";

// An element with attributes (functions listen) and children. Text never becomes markup.
function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const format = {
  count: (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en-US")),
  // Three significant digits.
  number: (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size < 1e-2 || size >= 1e6) return value.toExponential(2);
    return size >= 100 ? value.toLocaleString("en-US", { maximumFractionDigits: 0 }) : String(+value.toPrecision(3));
  },
  percent: (value) => (value === null || value === undefined ? "–" : `${format.number(100 * value)} %`),
  cosine: (value) => (value === null || value === undefined ? "–" : value.toFixed(3)),
};

// The texts of tokens by their ids, once they are loaded.
const tokens = {
  texts: [],
  // As it is.
  raw: (id) => tokens.texts[id] ?? `#${id} `,
  // With a sign for what would not be seen: control characters, and a byte that is no character by itself.
  shown: (id) =>
    tokens
      .raw(id)
      .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
      .replace(/\t/g, "⇥")
      .replace(/\n/g, "⏎")
      .replace(/\u007f/g, "␡")
      .replace(/[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, "·"),
};

// A token by itself, its blanks visible.
function tokenChip(id) {
  return h("span", { class: "token", title: `token ${id}` }, tokens.shown(id).replace(/ /g, "␣"));
}

function errorBox(error) {
  return h("p", { class: "error", role: "alert" }, error.message ?? String(error));
}

// Offers a text or blob as a file.
function download(name, content, type) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
