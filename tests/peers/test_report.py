"""`sae-trainer report` in a real browser: what the pages show is what the files of runs and indexes say."""

import functools
import http.server
import json
import re
import shutil
import threading

import numpy as np
import pytest
from playwright.sync_api import expect, sync_playwright
from test_evaluation import random_gpt2
from tokenizers import Tokenizer

F, T, CONTEXTS = 300, 32, 96
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
# A page that does what its texts say would show itself by this.
HOSTILE = "<img src=x onerror=hacked=1>"
# Tokens that a careless page would execute, or be confused by.
ODD = [HOSTILE, "</script><script>hacked=1</script>", "&lt;b&gt;", "\u202eback\u202c", "שלום", "🙂", "\x07\x1b[31m"]

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def made(program, repository, tmp_path_factory):
    """A folder with two runs of a random GPT-2, of which both have an index, and a report on them."""
    folder = tmp_path_factory.mktemp("report")
    model, _ = random_gpt2(folder / "model")
    tokenizer = odd_tokenizer(repository, folder / "tokenizer.json")
    (folder / "text").mkdir()
    for path in (repository / "tests/data").iterdir():
        shutil.copy(path, folder / "text")
    (folder / "text/odd.txt").write_text("".join(f"what stands {text} here is odd and\n" for text in 40 * ODD))
    store = folder / "store"
    program("activation-dump", "--model", model, "--layer", 1, "--dataset", folder / "text", "--tokens", T * CONTEXTS,
            "--context", T, "--tokenizer", tokenizer, "--out", store)  # fmt: skip
    for name, flags in {"l0": ["--l0-coefficient", "1e-4"], HOSTILE: ["--activation", "topk", "--k", 20]}.items():
        run = folder / "runs" / name
        program("sae-trainer", "--store", store, "--out", run, "--features", F, "--batch", 256, "--steps", 100, "--log-every", 10,
                "--lr", "3e-3", *flags)  # fmt: skip
        program("sae-trainer", "features", run, "--store", store, "--tokenizer", tokenizer)
    write(program, folder, "report")
    write(program, folder, "single.html", "--single-file", "--features", 40)
    return folder


def odd_tokenizer(repository, path):
    """SmolLM2's tokenizer with odd texts in place of some of its added tokens."""
    described = json.loads((repository / "models/smollm2-135m/tokenizer.json").read_text())
    vocabulary = described["model"]["vocab"]
    for token, text in zip(described["added_tokens"][-len(ODD) :], ODD):
        vocabulary[text] = vocabulary.pop(token["content"])
        token.update(content=text, special=False)
    path.write_text(json.dumps(described))
    return path


def shown(text):
    """A token as a page shows it: what would not be seen has a sign."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda found: chr(0x2400 + ord(found[0])), text)
    text = text.replace("\t", "⇥").replace("\n", "⏎").replace("\x7f", "␡")
    return re.sub("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]", "·", text)


def write(program, folder, out, *flags):
    program("sae-trainer", "report", folder / "runs/l0", folder / "runs" / HOSTILE, "--tokenizer", folder / "tokenizer.json",
            "--model", folder / "model", "--out", folder / out, *flags)  # fmt: skip


@pytest.fixture(scope="module")
def served(made):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=made / "report")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that must not complain, ask anybody else, or be taken over by what it shows."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    own = ("file://", "data:", "blob:", "http://127.0.0.1:")
    page.on("request", lambda request: None if request.url.startswith(own) else problems.append(request.url))
    yield page
    assert page.evaluate("typeof hacked") == "undefined"
    page.close()
    assert problems == []


@pytest.fixture(params=["from disk", "from a server", "one file"])
def address(request, made, served):
    return {"from disk": f"file://{made}/report/index.html", "from a server": served, "one file": f"file://{made}/single.html"}[request.param]


def figures_of(made, run="l0"):
    lines = (made / "runs" / run / "sae/features/features.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def at(page, address, route):
    page.goto("about:blank")
    page.goto(f"{address}#{route}")
    expect(page.locator("h1")).to_be_visible()


def series(page, title):
    """What a figure draws: [name, points] of each series."""
    holder = page.locator("figure", has=page.get_by_role("heading", name=title, exact=True)).locator(".chart")
    expect(holder.locator("svg")).to_be_visible()
    return holder.evaluate("chart => echarts.getInstanceByDom(chart).getOption().series.map(of => [of.name, of.data])")


def test_the_overview_shows_what_runs_recorded(page, address, made):
    at(page, address, "/")
    names = ["l0", HOSTILE]
    summaries = {name: json.loads((made / "runs" / name / "summary.json").read_text()) for name in names}
    rows = page.locator("#runs tbody tr")
    expect(rows).to_have_count(2)
    for at_row, name in enumerate(names):
        cells = rows.nth(at_row).locator("td").all_inner_texts()
        assert cells[0] == name
        assert float(cells[1]) == pytest.approx(summaries[name]["evaluation"]["l0"], rel=1e-2)
        assert int(cells[5]) == summaries[name]["evaluation"]["dead_features"]
    drawn = dict(series(page, "Centered MSE"))
    for name in names:
        lines = [json.loads(line) for line in (made / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["kind"] == "step"]
        assert [x for x, _ in drawn[name]] == [step["tokens"] for step in steps]
        assert [y for _, y in drawn[name]] == pytest.approx([step["mse_centered"] for step in steps], rel=1e-3)
    counts = dict(series(page, "How often features fire"))["l0"]
    assert [count for _, count in counts] == summaries["l0"]["evaluation"]["log10_frequency"]["counts"]
    # Sorted by L0, the larger one is last; a click more, first.
    by_l0 = sorted(names, key=lambda name: summaries[name]["evaluation"]["l0"])
    for order in (by_l0, by_l0[::-1]):
        page.locator("#runs").get_by_role("button", name="L0", exact=True).click()
        assert [cell.split("\t")[0] for cell in rows.all_inner_texts()] == order
    settings = page.locator("#settings").inner_text()
    assert "step.activation.kind" in settings or "step.activation" in settings


def test_a_figure_shows_values_and_can_be_saved(page, address, tmp_path):
    at(page, address, "/")
    figure = page.locator("figure", has=page.get_by_role("heading", name="L0", exact=True))
    expect(figure.locator("svg")).to_be_visible()
    box = figure.locator(".chart").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tooltip = figure.locator(".chart > div").last
    expect(tooltip).to_contain_text("l0: ")
    expect(tooltip).to_contain_text(f"{HOSTILE}: ")
    assert figure.locator(".chart").get_attribute("aria-label")
    for kind, begins in {"SVG": b"<svg", "PNG": b"\x89PNG", "CSV": b"series,x,y\n"}.items():
        with page.expect_download() as saved:
            figure.get_by_role("button", name=f"Save L0 as {kind}").click()
        path = tmp_path / kind
        saved.value.save_as(path)
        assert path.read_bytes().startswith(begins)
    # The legend hides a series.
    hide = "chart => { const of = echarts.getInstanceByDom(chart); of.dispatchAction({type: 'legendToggleSelect', name: 'l0'}); return of.getOption().legend[0].selected.l0 }"
    assert figure.locator(".chart").evaluate(hide) is False


def test_features_are_searched_sorted_and_filtered(page, made):
    address, figures = f"file://{made}/report/index.html", figures_of(made)
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    at(page, address, "/sae/0")
    status, first = page.get_by_role("status"), page.locator(".body .row").first
    expect(status).to_have_text(f"{F} of {F} features")
    assert page.locator(".body .row").count() < 100, "only rows in sight exist"
    page.get_by_role("button", name="density").click()
    densest = max(figures, key=lambda line: (line["density"], -line["feature"]))
    expect(first).to_contain_text(str(densest["feature"]))
    for kind in ("dead", "dense", "twin"):
        page.get_by_label("Kind").select_option(kind)
        expect(status).to_have_text(f"{sum(kind in line['kinds'] for line in figures)} of {F} features")
    page.get_by_label("Kind").select_option("alive")
    alive = sum(line["firings"] > 0 for line in figures)
    expect(status).to_have_text(f"{alive} of {F} features")
    token = tokenizer.decode([densest["token"]["token"]]).strip()
    page.get_by_label("Search").fill(token)
    expect(page.locator(".body .row").filter(has_text=str(densest["feature"])).first).to_be_visible()
    assert "q=" in page.url and "kind=alive" in page.url and "sort=-density" in page.url
    # The address alone brings the same choice back.
    kept = status.inner_text()
    page.reload()
    expect(status).to_have_text(kept)
    page.get_by_label("Search").fill(str(densest["feature"]))
    page.locator(".body").focus()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text(f"Feature {densest['feature']} of l0")


def test_a_feature_page_shows_the_contexts_of_the_index(page, made, program):
    address, figures = f"file://{made}/report/index.html", figures_of(made)
    for feature in [int(j) for j in np.argsort([-line["firings"] for line in figures])[[0, 20, 100]]]:
        found = json.loads(program("sae-trainer", "features", made / "runs/l0", "--id", feature, "--json",
                                   "--model", made / "model", "--tokenizer", made / "tokenizer.json"))  # fmt: skip
        at(page, address, f"/sae/0/feature/{feature}")
        section = page.locator("section[data-sample^=Largest] .excerpt")
        expect(section).to_have_count(min(15, len(found["top"])))
        for line, excerpt in zip(section.all(), found["top"]):
            spans = line.locator(".text span")
            assert spans.all_text_contents() == [shown(text) for text in excerpt["texts"]]
            peak = line.locator(".peak")
            assert f"position {excerpt['position']}" in peak.get_attribute("title")
            coloured = [style is not None for style in (span.get_attribute("style") for span in spans.all())]
            assert coloured == [a > 0 for a in excerpt["activations"]]
        likely = page.locator("div", has=page.get_by_role("heading", name="Makes more likely")).locator("li").last
        expect(likely).to_be_visible()
        neighbour = found["neighbours"][0]["feature"]
        assert str(neighbour) in page.locator(".columns").inner_text()
    page.keyboard.press("ArrowRight")
    expect(page.locator("h1")).to_contain_text(f"Feature {feature + 1} of l0")
    page.get_by_role("link", name="← previous").click()
    expect(page.locator("h1")).to_contain_text(f"Feature {feature} of l0")
    expect(page.get_by_text("best match").first).to_be_visible()


def test_a_context_shows_the_features_of_each_token(page, made):
    address = f"file://{made}/report/index.html"
    at(page, address, "/sae/1/contexts")
    expect(page.get_by_role("status")).to_contain_text(f"{CONTEXTS} of the {CONTEXTS} contexts")
    page.get_by_label("Search contexts").fill("zzzzqqq")
    expect(page.get_by_role("status")).to_contain_text("language model")
    page.get_by_label("Search contexts").fill("")
    page.locator(".list a").nth(3).click()
    expect(page.locator("h1")).to_contain_text("Context 3 in")
    page.locator(".text button").nth(10).click()
    # k = 20 of this autoencoder.
    expect(page.locator("main")).to_contain_text("20 features fire")
    expect(page.locator("main table tbody tr")).to_have_count(20)
    page.locator("main table tbody a").first.click()
    expect(page.locator("h1")).to_contain_text("Feature")


def test_odd_tokens_are_shown_as_text(page, made):
    for text in ODD:
        at(page, f"file://{made}/report/index.html", "/sae/0/contexts")
        page.get_by_label("Search contexts").fill(text)
        page.locator(".list a").first.click()
        token = page.locator(".text button").filter(has_text=shown(text)).first
        assert token.text_content() == shown(text)
        token.click()
        expect(page.locator("h2 .token")).to_have_text(shown(text).replace(" ", "␣"))


@pytest.mark.parametrize("width", [1400, 800, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_name_what_they_offer(browser, made, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    for route in ("/", "/sae/0", "/sae/0/feature/5", "/sae/1/contexts", "/sae/1/context/2"):
        at(page, f"file://{made}/report/index.html", route)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, route
        nameless = "[...document.querySelectorAll('button, a, input, select')].filter(of => !(of.getAttribute('aria-label') ?? of.textContent).trim()).length"
        assert page.evaluate(nameless) == 0, route
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
    page.close()


def test_what_is_not_there_is_said(page, made):
    for route, words in {"/sae/9": "no such page", "/sae/0/feature/999": "There is no feature 999", "/nowhere": "no such page"}.items():
        page.goto("about:blank")
        page.goto(f"file://{made}/report/index.html#{route}")
        expect(page.get_by_role("alert")).to_contain_text(words)
    page.goto("about:blank")
    page.goto(f"file://{made}/single.html#/sae/0/feature/50")
    expect(page.get_by_role("alert")).to_contain_text("is not in this report")
