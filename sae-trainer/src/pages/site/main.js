// Which page the address asks for: #/, #/sae/0, #/sae/0/feature/8684, #/sae/0/contexts, #/sae/0/context/3.
"use strict";

const main = document.getElementById("main");
let overview;
let shownRoute = 0;

// The address behind #: its parts, and its query.
function address() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?", 2);
  return { parts: path.split("/").filter((part) => part !== ""), query: new URLSearchParams(query ?? "") };
}

// A title, elements, and what is to be done once they are shown: only then may a page write what was chosen into the address.
async function page({ parts, query }) {
  if (parts.length === 0) return { title: "Overview", elements: overviewPage(overview) };
  const number = Number(parts[1]);
  const run = overview.runs[number];
  if (parts[0] !== "sae" || !run) throw new Error("There is no such page in this report.");
  if (!run.index) throw new Error(`${run.name} had no activation index when the report was made, so its features are not in it.`);
  switch (parts[2]) {
    case undefined:
      return { title: `Features of ${run.name}`, ...(await browserPage(number, run, query)) };
    case "feature":
      return { title: `Feature ${parts[3]} of ${run.name}`, elements: await featurePage(number, run, Number(parts[3])) };
    case "contexts":
      return { title: `Contexts in ${run.name}`, ...(await contextsPage(number, run, query)) };
    case "context":
      return { title: `A context in ${run.name}`, ...(await contextPage(number, run, Number(parts[3]), query)) };
    default:
      throw new Error("There is no such page in this report.");
  }
}

async function show() {
  const route = ++shownRoute;
  let made;
  try {
    made = await page(address());
  } catch (error) {
    made = { title: "Error", elements: [errorBox(error)] };
  }
  // Another address may have been asked for meanwhile.
  if (route !== shownRoute) return;
  charts.clear();
  document.title = `${made.title} · sae-trainer report`;
  main.replaceChildren(...made.elements);
  navigation();
  made.shown?.();
}

function navigation() {
  const { parts } = address();
  const link = (href, text, current) => h("a", { href, "aria-current": current && "page" }, text);
  const links = [link("#/", "Overview", parts.length === 0)];
  if (parts[0] === "sae" && overview.runs[Number(parts[1])]?.index) {
    const number = parts[1];
    links.push(link(`#/sae/${number}`, `Features of ${overview.runs[number].name}`, parts[2] === undefined));
    links.push(link(`#/sae/${number}/contexts`, "Contexts", parts[2] === "contexts"));
  }
  document.getElementById("nav").replaceChildren(...links);
}

function theme(chosen) {
  const dark = chosen ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.dataset.theme = dark;
  document.getElementById("theme").textContent = dark === "dark" ? "☀" : "☾";
  charts.redraw();
}

document.getElementById("theme").addEventListener("click", () => {
  theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme());
addEventListener("resize", charts.resize);
addEventListener("hashchange", () => {
  scrollTo(0, 0);
  show();
});
theme();
report
  .load("overview")
  .then(async (loaded) => {
    overview = loaded;
    if (overview.texts) tokens.texts = await report.load("texts");
    await show();
  })
  .catch((error) => main.replaceChildren(errorBox(error)));
