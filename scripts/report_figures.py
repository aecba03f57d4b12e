"""See scripts/report-figures."""

import pathlib
import re
import shutil
import sys
import urllib.parse

from playwright.sync_api import sync_playwright

SAVED = """figure => {
  const chart = echarts.getInstanceByDom(figure.querySelector(".chart"));
  // Whatever it is shown on, and without pages in its legend.
  chart.setOption({ backgroundColor: "#fff", legend: { type: "plain" } });
  return [figure.querySelector("h2, h3").textContent, chart.getDataURL({ type: "svg" })];
}"""


def main():
    if len(sys.argv) < 3:
        sys.exit("usage: scripts/report-figures REPORT FOLDER [WORD…]")
    report, folder, words = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]), sys.argv[3:]
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("there is no Chromium")
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(
            viewport={"width": 900, "height": 900}, color_scheme="light"
        )
        page.goto(f"file://{report}/index.html")
        page.locator("figure .chart svg").first.wait_for()
        # Figures are drawn when they come into view.
        for figure in page.locator("figure").all():
            figure.scroll_into_view_if_needed()
            figure.locator(".chart svg").wait_for()
            title, url = figure.evaluate(SAVED)
            if words and not any(word in title for word in words):
                continue
            name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") + ".svg"
            (folder / name).write_text(urllib.parse.unquote(url.split(",", 1)[1]))
            print(folder / name)


main()
