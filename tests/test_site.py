"""The site, built into a temporary folder and read in a real browser.

Chromium, KaTeX and Font Awesome are those of the system: see `.ci/run`.
"""

import functools
import http.server
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from helpers import ROOT, none, tool
from playwright.sync_api import sync_playwright

from amtutorial.circle import energy_am, score_am
from amtutorial.data import circle_patterns, plane_grid
from amtutorial.minima import find_minima
from amtutorial.retrieval import hopfield_update, retrieve
from amtutorial.sde import effective_number, marginal_logp, marginal_score, posterior_weights

PAGES = [Path(tool.page_url(ROOT, p)).name for p in tool.notebooks(ROOT)]
SHARE = Path("/usr/share")  # packages libjs-katex and fonts-font-awesome of Debian and Ubuntu
CHROMIUM = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)
LOCAL = {
    "cdn.jsdelivr.net/npm/katex": SHARE / "javascript" / "katex",
    "maxcdn.bootstrapcdn.com/font-awesome": SHARE / "fonts-font-awesome",
}
MISSING = ([] if CHROMIUM else ["Chromium"]) + [
    f"{path.name} in {path.parent}" for path in LOCAL.values() if not path.exists()
]
in_browser = pytest.mark.skipif(
    bool(MISSING) and not os.environ.get("CI"), reason=f"not installed: {', '.join(MISSING)}"
)
on_pages = pytest.mark.parametrize("name", PAGES)


# Built once, served once


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The folder of the site, built on a copy of the checkout."
    copy = tmp_path_factory.mktemp("checkout")
    for name in "settings.ini", "_quarto.yml", "nbs", "amtutorial", "assets", "tools":
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True)
        else:
            shutil.copy2(ROOT / name, copy / name)
    done = subprocess.run(
        [sys.executable, copy / "tools" / "site.py", "smalldocs"], capture_output=True, text=True
    )
    assert not done.returncode, done.stderr[-3000:]
    assert done.stdout + done.stderr == "built _docs/index.html\n"
    return copy / "_docs"


@pytest.fixture(scope="session")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=site)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    assert not MISSING, f"not installed: {', '.join(MISSING)}"
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def from_disk(route):
    "Answer a request for another site from files here: a badge is blank, a web font is left out."
    url = route.request.url
    if "fonts.googleapis.com" in url:
        return route.fulfill(body="", content_type="text/css")
    if url.endswith("badge.svg"):
        return route.fulfill(
            body='<svg xmlns="http://www.w3.org/2000/svg" width="117" height="20"/>',
            content_type="image/svg+xml",
        )
    for prefix, folder in LOCAL.items():
        if prefix in url:
            file = folder / re.sub(r".*?/(?:dist|[\d.]+)/", "", urlsplit(url).path, count=1)
            for path in file, file.with_name(file.name.replace(".min.", ".")):
                if path.exists():
                    return route.fulfill(path=path)
    route.abort()


def open_window(browser, address, name, width=1280, **kwargs):
    "A page in a window of its own; what the console complained about is in `page.faults`."
    context = browser.new_context(viewport=dict(width=width, height=800), **kwargs)
    context.route(re.compile("^https:"), from_disk)
    page = context.new_page()
    page.faults = []
    page.on(
        "console",
        lambda m: (
            page.faults.append(f"{m.type}: {m.text} {m.location.get('url', '')}")
            if m.type in ("error", "warning")
            else None
        ),
    )
    page.on("pageerror", lambda e: page.faults.append(str(e)))
    page.on("requestfailed", lambda r: page.faults.append(f"not loaded: {r.url}"))
    page.goto(address + name, wait_until="load")
    return page


@pytest.fixture
def open_page(browser, address):
    pages = []

    def open_page(*args, **kwargs):
        pages.append(open_window(browser, address, *args, **kwargs))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()


# What needs no browser


class Anchors(HTMLParser):
    "The ids and the links of a page."

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.meta = set(), [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get("id"):
            self.ids.add(attrs["id"])
        if tag == "meta" and "property" in attrs:
            self.meta[attrs["property"]] = attrs["content"]
        self.links += [
            attrs[k]
            for k in ("href", "src")
            if attrs.get(k) and not (tag == "link" and attrs.get("rel") == "canonical")
        ]


def test_links_and_anchors_resolve(site):
    pages = {p.name: Anchors(p.read_text(encoding="utf-8")) for p in site.glob("*.html")}
    assert set(pages) == set(PAGES)
    faults, home = [], tool.page_url(ROOT)
    for name, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if link.startswith(home):
                faults.append(f"{name}: {link} should be relative")
            if url.scheme or url.netloc:
                continue
            target = unquote(url.path) or name
            if not (site / target).is_file():
                faults.append(f"{name}: {link} is not there")
            elif (
                url.fragment
                and url.fragment not in ("", "top")
                and unquote(url.fragment) not in pages[target].ids
            ):
                faults.append(f"{name}: {link} has no such anchor")
    none(faults)


def test_addresses_of_a_page(site):
    "Edit and report links, preview, source of a function: all at the repository of settings.ini."
    page, cfg = Anchors((site / "sde.html").read_text(encoding="utf-8")), tool.settings(ROOT)
    for link in (
        f"{cfg['git_url']}/edit/{cfg['branch']}/nbs/02_sde.ipynb",
        f"{cfg['git_url']}/issues/new",
        "favicon.svg",
    ):
        assert link in page.links, link
    assert any(
        re.match(re.escape(cfg["git_url"]) + r"/blob/\w+/amtutorial/sde\.py#L\d+", o)
        for o in page.links
    )
    assert (
        page.meta["og:image"] == tool.page_url(ROOT) + "preview.png"
        and (site / "preview.png").stat().st_size > 1e4
    )


def test_pictures_have_the_size_of_their_notebook(site):
    for path, name in zip(tool.notebooks(ROOT), PAGES):
        sizes = {
            "".join(o["data"]["image/png"]).replace("\n", "")[:200]: str(
                o["metadata"]["image/png"]["width"]
            )
            for c in tool.load(path)["cells"]
            for o in c.get("outputs", [])
            if "image/png" in o.get("data", {})
        }
        for tag in re.findall(
            r"<img [^>]*base64[^>]{0,400}", (site / name).read_text(encoding="utf-8")
        ):
            data = re.search(r"base64,([\w+/]{200})", tag)[1]
            if data in sizes:
                assert f'width="{sizes[data]}"' in tag, name


def code_output(path, cell):
    "The Markdown that a notebook's cell printed, as committed."
    return "".join(
        next(c for c in tool.load(path)["cells"] if c["id"] == cell)["outputs"][0]["data"][
            "text/markdown"
        ]
    )


def test_list_of_functions_is_fresh():
    path, scope = ROOT / "nbs" / "api.ipynb", {}
    for cell in tool.load(path)["cells"]:
        if cell["cell_type"] == "code":
            exec(tool.code_of(cell).replace("\nMarkdown(", "\nresult = ("), scope)
    assert scope["result"] == code_output(path, "listing"), "run `make notebooks NB=nbs/api.ipynb`"


def test_every_paper_is_on_the_references_page():
    "Every paper that a chapter links to is listed, together with the chapters that lean on it."
    text = lambda path: "\n".join(
        tool.source(c) for c in tool.load(path)["cells"] if c["cell_type"] == "markdown"
    ).replace("(82)", "%2882%29")
    links = lambda path: {
        u.lower()
        for u in re.findall(r"\]\((https://(?:arxiv\.org/abs|doi\.org)/[^\s)]+)\)", text(path))
    }
    entries = {
        u: line
        for line in text(ROOT / "nbs" / "references.ipynb").splitlines()
        for u in re.findall(r"\]\((https://[^\s)]+)\)", line.lower())
    }
    faults = []
    for path in tool.notebooks(ROOT):
        for url in links(path) if path.stem != "references" else ():
            if url not in entries:
                faults.append(f"{path.name} links to {url}, which references.ipynb does not list")
            elif path.stem[:2].isdigit() and f"({path.name})" not in entries[url]:
                faults.append(f"references.ipynb does not say that {path.name} uses {url}")
    none(faults)


# Every page


@in_browser
@on_pages
def test_page(open_page, name):
    "No complaint on the console, pictures described, mathematics typeset, no wider than a phone."
    page = open_page(name)
    pictures = page.evaluate(
        """[...document.images].map(
            i => [i.complete && i.naturalWidth > 0, i.alt, i.src.slice(0, 60)])"""
    )
    none(
        [
            f"picture {src}: loaded {loaded}, alt {alt!r}"
            for loaded, alt, src in pictures
            if not loaded or not alt.strip()
        ]
    )
    text = page.evaluate("""() => { const c = document.querySelector('main').cloneNode(true)
        c.querySelectorAll('pre, code, script, style, annotation').forEach(e => e.remove())
        return c.textContent }""")
    assert not (
        raw := re.search(
            r"\]\(\S{0,40}|\\[(\[].{0,40}|\$\$.{0,40}|\\(frac|mathbf|beta|sum)\b.{0,40}", text
        )
    ), f"not typeset: {raw[0]}"
    assert page.locator(".katex-error").count() == 0
    source = (ROOT / "nbs" / tool.notebooks(ROOT)[PAGES.index(name)].name).read_text(
        encoding="utf-8"
    )
    if "\\\\tag{" in source:
        assert page.locator(".katex-display .tag").count() > 0
    page.set_viewport_size(dict(width=390, height=800))
    none(
        page.evaluate("""() => { // what sticks out, neither scrolling nor hidden from sight
        const boxed = e => {
          if (e.closest('svg, .katex-mathml')) return true
          for (; e.tagName !== 'MAIN'; e = e.parentElement)
            if (/auto|scroll/.test(getComputedStyle(e.parentElement).overflowX)) return true }
        return [...document.querySelectorAll('main *')]
          .filter(e => e.getBoundingClientRect().right > 391 && !boxed(e))
          .map(e => e.outerHTML.slice(0, 120)) }""")
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    none(page.faults)


CONTRAST = """() => {
  const dab = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true })
  const paint = colours => {
    dab.clearRect(0, 0, 1, 1)
    for (const c of ['#fff', ...colours]) { dab.fillStyle = c; dab.fillRect(0, 0, 1, 1) }
    return dab.getImageData(0, 0, 1, 1).data }
  const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
  const light = c => [0.2126, 0.7152, 0.0722].reduce((s, w, i) => s + w * linear(c[i] / 255), 0)
  const faults = new Set(), walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  for (let n; n = walk.nextNode();) {
    const e = n.parentElement, r = e.getBoundingClientRect(), s = getComputedStyle(e), ground = []
    if (!n.textContent.trim() || !r.width || r.height < 4 || s.visibility === 'hidden') continue
    if (e.closest('script, style, svg, .anim-buttons, .katex-mathml')) continue
    for (let o = e; o; o = o.parentElement) ground.unshift(getComputedStyle(o).backgroundColor)
    const two = [light(paint([...ground, s.color])), light(paint(ground))]
    const [a, b] = two.sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05)
    const where = `${e.tagName}.${e.className} ${s.color}: ${n.textContent.trim().slice(0, 30)}`
    if (ratio < (parseFloat(s.fontSize) >= 24 ? 3 : 4.5)) faults.add(`${ratio.toFixed(2)} ${where}`)
  }
  return [...faults].slice(0, 12) }"""


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index.html", "sde.html", "explorer.html"])
def test_contrast(open_page, name, scheme):
    "Every text reaches the contrast that WCAG calls AA."
    page = open_page(
        name, color_scheme=scheme, reduced_motion="reduce"
    )  # no colour is half-way to another
    none(page.evaluate(CONTRAST))


@in_browser
def test_theme_switch(open_page):
    page = open_page("index.html", color_scheme="light")
    ground = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = ground()
    page.locator(".quarto-color-scheme-toggle").first.click()
    page.wait_for_function(f"getComputedStyle(document.body).backgroundColor !== '{light}'")
    dark = ground()
    page.reload(wait_until="load")
    assert ground() == dark, "the choice is forgotten"


@in_browser
@pytest.mark.parametrize("word, target", [("Bessel", "circle.html"), ("attention", "sde.html")])
def test_search(open_page, word, target):
    page = open_page("index.html")
    page.locator(".smalldocs-search input").first.fill(word)
    page.wait_for_selector(".search-result")
    assert any(
        target in link
        for link in page.eval_on_selector_all(
            ".search-result", "all => all.map(a => a.getAttribute('href'))"
        )
    )


@in_browser
def test_folded_code_opens(open_page, site):
    name = next(
        n for n in PAGES if '<details class="code-fold">' in (site / n).read_text(encoding="utf-8")
    )
    fold = open_page(name).locator("details.code-fold").first
    assert not fold.locator("pre").is_visible()
    fold.locator("summary").press("Enter")
    assert fold.locator("pre").is_visible()


@in_browser
def test_animation_plays(open_page):
    page = open_page("sampling.html")
    player, picture = page.locator(".animation").first, page.locator(".animation img").first
    player.locator("button[title='First frame']").click()
    before = picture.get_attribute("src")
    player.locator("button[title='Play']").click()
    page.wait_for_function(
        "([e, src]) => e.src !== src", arg=[picture.element_handle(), before], timeout=5000
    )
    none(page.faults)


# The explorer

READY = "window.amExplorer && amExplorer.state().frame > 0"


@pytest.fixture(scope="session")
def explorer_window(browser, address):
    page = open_window(browser, address, "explorer.html")
    page.wait_for_function(READY)
    return page


@pytest.fixture
def explorer(explorer_window):
    "The explorer as it first opens: nine memories at t = 0.15."
    page = explorer_window
    for choice in "[value=cue]", "[value=hopfield]":
        page.locator(choice).check()
    page.locator("[data-preset='9']").click()
    set_t(page, 0.15)
    yield page
    none(page.faults)


def state(page):
    "What the explorer shows, after the next frame."
    page.evaluate("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
    return page.evaluate("amExplorer.state()")


def set_t(page, t):
    page.evaluate(
        """t => { const e = document.querySelector('#explorer input[name=t]')
        e.value = Math.log(t)
        e.dispatchEvent(new Event('input', { bubbles: true })) }""",
        t,
    )


def exact_minima(patterns, t, bound=1.5, n=161):
    "What chapter 7 finds: positions, barriers and N_eff of the minima that are no ripples."
    X, Y, points = plane_grid(n, bound)
    energy = -marginal_logp(points.double(), t, patterns).reshape(n, n)
    found = find_minima(
        energy,
        torch.stack([X, Y], -1).double(),
        lambda x: x + t * marginal_score(x, t, patterns),
        tol=1e-10,
    )
    return found.x, found.barrier, effective_number(posterior_weights(found.x, t, patterns))


def assert_same_minima(shown, patterns, t):
    wells = [m for m in shown["minima"] if m["kind"] != "ripple"]
    x, barrier, n_eff = exact_minima(patterns, t)
    assert len(wells) == len(x)
    torch.testing.assert_close(
        torch.tensor([[m["x"], m["y"]] for m in wells], dtype=torch.float64), x, rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        torch.tensor([m["n_eff"] for m in wells], dtype=torch.float64), n_eff, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        torch.tensor([m["barrier"] or math.inf for m in wells], dtype=torch.float64),
        barrier,
        rtol=0,
        atol=1e-2,
    )  # on a grid
    assert [m["kind"] == "memory" for m in wells] == [n < 1.5 for n in n_eff.tolist()]


@in_browser
def test_closed_forms_are_those_of_the_library(explorer):
    g = torch.Generator().manual_seed(1)
    for K, t in [(1, 0.5), (2, 0.15), (9, 0.002), (9, 0.15), (30, 1.0)]:
        patterns, x = (
            circle_patterns(K).double(),
            torch.randn(20, 2, generator=g, dtype=torch.float64),
        )
        got = explorer.evaluate(
            """([x, t, p]) => x.map(([a, b]) => { const w = amExplorer.weights(a, b, t, p)
            return [amExplorer.energy(a, b, t, p), amExplorer.effectiveNumber(w),
              ...amExplorer.score(a, b, t, p), ...amExplorer.denoise([a, b], t, p)] })""",
            [x.tolist(), t, patterns.tolist()],
        )
        w = posterior_weights(x, t, patterns)
        want = torch.cat(
            [
                -marginal_logp(x, t, patterns)[:, None],
                effective_number(w)[:, None],
                marginal_score(x, t, patterns),
                w @ patterns,
            ],
            1,
        )
        torch.testing.assert_close(
            torch.tensor(got, dtype=torch.float64), want, rtol=1e-9, atol=1e-9
        )
    unit = torch.tensor([[math.cos(0.3), math.sin(0.3)], [1, 0]], dtype=torch.float64)
    assert explorer.evaluate(
        "([x, p]) => amExplorer.denoise(x, 0.3, p)", [unit[0].tolist(), unit.tolist()]
    ) == pytest.approx(hopfield_update(unit[:1], unit, 1 / 0.3)[0].tolist(), abs=1e-12)


@in_browser
def test_circle_is_that_of_the_library(explorer):
    R = torch.linspace(0, 3, 61, dtype=torch.float64)
    x = torch.stack([R * math.cos(1.0), R * math.sin(1.0)], 1)
    for t in 0.002, 0.05, 0.15, 1.0:
        beta = 1 / (2 * t)
        got = explorer.evaluate(
            "([R, t]) => R.map(r => amExplorer.circleEnergy(r, t))", [R.tolist(), t]
        )
        torch.testing.assert_close(
            torch.tensor(got, dtype=torch.float64),
            beta * energy_am(x, beta, normalize=False),
            rtol=1e-10,
            atol=1e-10,
        )


@in_browser
def test_map_and_flow(explorer):
    "The map, drawn by products of Gaussians; the flow of one memory, whose distance falls as √t."
    patterns = circle_patterns(30).double()
    got = explorer.evaluate("p => [...amExplorer.landscape(0.15, p, 41, 1.5)]", patterns.tolist())
    _, _, points = plane_grid(41, 1.5)
    want = -marginal_logp(points.double(), 0.15, patterns).reshape(41, 41).T.ravel()
    torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), want, rtol=0, atol=1e-6)
    end = explorer.evaluate(
        """() => { let x = [1, 1]
        for (let t = 0.5; t > 0.01; t *= 0.95) x = amExplorer.flow(x, t, t * 0.95, [[0.2, 0.1]])
        return x }"""
    )
    s = 0.5
    while s > 0.01:
        s *= 0.95
    assert end == pytest.approx(
        [0.2 + 0.8 * math.sqrt(s / 0.5), 0.1 + 0.9 * math.sqrt(s / 0.5)], abs=1e-8
    )


@in_browser
@pytest.mark.parametrize(
    "K, t, phase",
    [
        (2, 0.15, "memories"),
        (9, 0.15, "mixtures"),
        (9, 0.02, "memories"),
        (30, 0.15, "circle"),
        (30, 0.3, "one valley"),
        (9, 0.5, "one valley"),
    ],
)
def test_presets_and_slider(explorer, K, t, phase):
    explorer.locator(f"[data-preset='{K}']").click()
    set_t(explorer, t)
    shown = state(explorer)
    patterns = circle_patterns(K).double()
    torch.testing.assert_close(
        torch.tensor(shown["patterns"], dtype=torch.float64), patterns, rtol=0, atol=1e-8
    )
    assert (
        shown["t"] == pytest.approx(t, rel=1e-9)
        and f"β = 1/(2σ²t) = {1 / (2 * shown['t']):.3g}"
        in explorer.locator("#explorer output").inner_text()
    )
    if (K, t) != (9, 0.02):
        assert_same_minima(shown, patterns, shown["t"])
    assert shown["phase"] == phase and explorer.locator(".am-phase b").inner_text() == phase


@in_browser
def test_circle_preset(explorer):
    explorer.locator("[data-preset=circle]").click()
    shown = state(explorer)
    assert shown["phase"] == "circle" and shown["patterns"] is None and shown["minima"] == []
    for t in 0.002, 0.15, 0.49, 0.6:  # the bottom of the valley: no force along the radius
        R = explorer.evaluate("t => amExplorer.ringRadius(t)", t)
        assert abs(
            score_am(torch.tensor([[R, 0.0]], dtype=torch.float64), 1 / (2 * t)).max()
        ) < 1e-6 and (R > 0) == (t < 0.5)


def plane(page):
    "A function from points of the plane to pixels of the window."
    page.locator("#explorer canvas").scroll_into_view_if_needed()
    box = page.locator("#explorer canvas").bounding_box()
    return lambda x, y: (
        box["x"] + (x / 1.5 + 1) / 2 * box["width"],
        box["y"] + (1 - y / 1.5) / 2 * box["height"],
    )


@in_browser
def test_drag_moves_a_memory(explorer):
    explorer.locator("[data-preset='2']").click()
    before = state(explorer)["patterns"]
    at = plane(explorer)
    explorer.mouse.move(*at(*before[0]))
    explorer.mouse.down()
    explorer.mouse.move(*at(0.2, 0.3), steps=4)
    explorer.mouse.up()
    explorer.mouse.move(*at(-1, -1))
    shown = state(explorer)
    assert (
        shown["patterns"][0] == pytest.approx([0.2, 0.3], abs=0.01)
        and shown["patterns"][1] == before[1]
    )
    assert_same_minima(shown, torch.tensor(shown["patterns"], dtype=torch.float64), shown["t"])


@in_browser
def test_memories_are_added_and_removed(explorer):
    explorer.locator("[data-do=clear]").click()
    explorer.locator("[value=add]").check()
    at = plane(explorer)
    for point in (0.5, 0.5), (-0.5, 0.2), (0.1, -0.8):
        explorer.mouse.click(*at(*point))
    assert len(state(explorer)["patterns"]) == 3
    explorer.locator("[value=remove]").check()
    explorer.mouse.click(*plane(explorer)(-0.5, 0.2))
    assert [p[0] > 0 for p in state(explorer)["patterns"]] == [True, True]


@in_browser
def test_cue_is_retrieved(explorer):
    patterns = circle_patterns(9).double()
    explorer.mouse.click(*plane(explorer)(0.1, 0.3))
    explorer.wait_for_function("amExplorer.state().cue?.done", timeout=20000)
    trail = torch.tensor(state(explorer)["cue"]["trail"], dtype=torch.float64)
    torch.testing.assert_close(
        trail[1:3],
        torch.stack([hopfield_update(x, patterns, 1 / 0.15) for x in trail[:2]]),
        rtol=0,
        atol=1e-6,
    )
    torch.testing.assert_close(
        trail[-1], retrieve(trail[:1], patterns, 1 / 0.15).x[0], rtol=0, atol=2e-3
    )


@in_browser
@pytest.mark.parametrize("motion", ["flow", "noise"])
def test_cue_ends_on_a_memory(explorer, motion):
    explorer.locator(f"[value={motion}]").check()
    explorer.mouse.click(*plane(explorer)(0.1, 0.3))
    explorer.wait_for_function("amExplorer.state().cue?.done", timeout=20000)
    shown = state(explorer)
    last = torch.tensor(shown["cue"]["trail"][-1], dtype=torch.float64)
    assert torch.cdist(last[None], circle_patterns(9).double()).min() < 5 * math.sqrt(0.002)
    assert shown["shown"] == shown["t"], "the landscape returns to the noise of the slider"


@in_browser
def test_keyboard(explorer):
    canvas = explorer.locator("#explorer canvas")
    canvas.focus()
    before = state(explorer)["patterns"]
    for key in ["m", "Enter", "ArrowRight", "ArrowUp", "Enter"]:
        canvas.press(key)
    after = state(explorer)["patterns"]
    moved = [k for k in range(9) if after[k] != before[k]]
    assert len(moved) == 1 and after[moved[0]] == pytest.approx(
        [before[moved[0]][0] + 0.05, before[moved[0]][1] + 0.05], abs=1e-9
    )
    canvas.press("Delete")
    assert len(state(explorer)["patterns"]) == 8
    explorer.locator("#explorer input[name=t]").press("ArrowLeft")
    assert state(explorer)["t"] < 0.15


@in_browser
def test_touch_on_a_phone(open_page):
    page = open_page("explorer.html", width=390, has_touch=True, is_mobile=True)
    page.wait_for_function(READY)
    page.touchscreen.tap(*plane(page)(0.1, 0.2))
    page.wait_for_function("amExplorer.state().cue?.trail.length > 1")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
