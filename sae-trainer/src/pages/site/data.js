// Data by name. A page opened from disk may load scripts and nothing else, so each data script calls `report.take` with the base64 of
// compressed JSON. In a report of one file, the texts are in the page.
"use strict";

const report = (() => {
  const waiting = new Map();
  const known = new Map();

  async function decode(text) {
    const letters = atob(text);
    const bytes = new Uint8Array(letters.length);
    for (let at = 0; at < letters.length; at++) bytes[at] = letters.charCodeAt(at);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return JSON.parse(await new Response(stream).text());
  }

  function fetchScript(name) {
    return new Promise((resolve, reject) => {
      waiting.set(name, resolve);
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.onload = () => script.remove();
      script.onerror = () => {
        known.delete(name);
        reject(new Error(`data/${name}.js cannot be read. Is the folder of the report complete?`));
      };
      document.head.append(script);
    });
  }

  // Resolves with the data of a name; each is read once.
  function load(name) {
    if (!known.has(name)) {
      const inside = document.getElementById(`data-${name}`);
      known.set(name, (inside ? Promise.resolve(inside.textContent) : fetchScript(name)).then(decode));
    }
    return known.get(name);
  }

  function take(name, text) {
    waiting.get(name)?.(text);
    waiting.delete(name);
  }

  return { load, take };
})();
