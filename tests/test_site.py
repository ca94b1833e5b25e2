"""The site, built into a temporary folder and read in a real browser (tests/conftest.py).

Always as smalldocs renders it, and as Quarto does where `quarto` is installed.
"""

import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browsing import CONTRAST, MATHJAX, from_disk, in_browser
from helpers import ROOT, none, tool

PAGES = [Path(tool.page_url(ROOT, p)).name for p in tool.notebooks(ROOT)]
WINDOW, HAND = dict(width=1400, height=900), dict(width=390, height=844)
COLUMN, PHONE = 829, 349  # widths of the text in both, in pixels


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
    "Edit and report links, preview: all at the repository of settings.ini."
    page, cfg = Anchors((site / "sde.html").read_text(encoding="utf-8")), tool.settings(ROOT)
    for link in (
        f"{cfg['git_url']}/edit/{cfg['branch']}/nbs/02_sde.ipynb",
        f"{cfg['git_url']}/issues/new",
        "favicon.svg",
    ):
        assert link in page.links, link
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


def test_no_option_is_given_twice(site):
    "Quarto refuses a cell that has an option twice, such as a fold of its own and one of nbdev's."
    faults = []
    for path in (site.parent / "_proc").glob("*.ipynb"):
        for cell in tool.load(path)["cells"]:
            names = re.findall(r"^#\| ([\w-]+):", tool.source(cell), re.M)
            faults += [f"{path.name}: {n} twice" for n in set(names) if names.count(n) > 1]
    none(faults)


def test_exported_code_is_shown(site):
    "The site shows the code of every exported definition, at the anchor that links lead to."
    text = (site / "sde.html").read_text(encoding="utf-8")
    body = text[text.index('id="marginal_score"') :]
    assert "posterior_mean" in re.sub(r"<[^>]+>", "", body[: body.index("</pre>")])


def test_sections_and_pages_have_names_of_their_own():
    sections = re.findall(r'- section: "?([^"\n]+)', (ROOT / "_quarto.yml").read_text("utf-8"))
    titles = [tool.source(tool.load(p)["cells"][0]).split("\n")[0] for p in tool.notebooks(ROOT)]
    bare = [re.sub(r"^(# )?(\d+ |Part \w+: )?", "", name).lower() for name in sections + titles]
    none(sorted({name for name in bare if bare.count(name) > 1}))


# Every page, both renderings, in a window and on a phone, light and dark


@pytest.fixture(scope="session")
def quarto_site(site):
    "The folder of the site that is published."
    copy = site.parent.with_name("quarto")
    made = shutil.ignore_patterns("_docs", "_proc")
    shutil.copytree(site.parent, copy, symlinks=True, ignore=made)
    command = [sys.executable, copy / "tools" / "site.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    none(re.findall(r".*\b(?:WARN|ERROR).*", done.stdout + done.stderr))
    return copy / "_docs"


with_quarto = pytest.mark.skipif(not shutil.which("quarto"), reason="Quarto is not installed")
on_both = pytest.mark.parametrize(
    "rendering", ["site", pytest.param("quarto_site", marks=with_quarto)]
)
TYPESET = """() => !document.querySelector('.math') || document.querySelector('.katex')
  || window.MathJax?.startup?.promise && document.querySelector('mjx-container')"""


@contextmanager
def reader(browser, folder, size=WINDOW, **kwargs):
    "A function that opens pages, one after the other in one window, their formulas typeset."
    home = "https://site.test/"
    context = browser.new_context(viewport=size, reduced_motion="reduce", **kwargs)
    context.route(re.compile("^https:"), from_disk)
    serve = lambda route: route.fulfill(path=folder / urlsplit(route.request.url).path[1:])
    context.route(home + "**", serve)
    page = context.new_page()
    page.set_default_timeout(90_000)  # on a busy machine
    page.faults = []
    page.on("console", lambda m: page.faults.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: page.faults.append(str(e)))
    page.on("requestfailed", lambda r: page.faults.append(f"not loaded: {r.url}"))

    def read(name):
        page.faults.clear()
        page.set_viewport_size(size)
        page.goto(home + name, wait_until="load")
        page.wait_for_function(TYPESET)
        page.evaluate("async () => { await window.MathJax?.startup?.promise }")
        return page

    yield read
    context.close()


LAYOUT = """wide => {
  const faults = [], width = document.documentElement.clientWidth, round = Math.round
  const told = (what, e) => faults.push(`${what}: ${e.outerHTML.slice(0, 110)}`)
  const extra = document.documentElement.scrollWidth - width
  if (extra > 0) faults.push(`the page scrolls sideways by ${extra}`)
  const unseen = e => e.closest('mjx-assistive-mml, svg, .visually-hidden, [aria-hidden=true]')
    || e.parentElement.closest('.katex')
  const boxes = [...document.querySelectorAll('body *')].filter(e => e.clientWidth
    && !unseen(e) && getComputedStyle(e).overflowX !== 'visible')
  for (const e of document.querySelectorAll('main *')) {
    const r = e.getBoundingClientRect()
    if (r.width && r.right > width + 1 && !unseen(e)
        && !boxes.some(b => b !== e && b.contains(e))) told('sticks out', e)
  }
  for (const e of boxes) {
    const style = getComputedStyle(e)
    if (e.scrollWidth <= e.clientWidth + 1 || style.textOverflow === 'ellipsis') continue
    if (!/auto|scroll/.test(style.overflowX)) told('cut off', e)
    else if (!/local/.test(style.backgroundAttachment) && !e.querySelector('img')
        && !e.matches('.long, .katex')) told('scrolls, and nothing shows it', e)
  }
  for (const cell of document.querySelectorAll('td, th')) {
    const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), range = new Range()
    for (let n; n = texts.nextNode();) {
      if (n.parentElement.closest('.math, mjx-container, .katex')) continue
      for (const m of n.textContent.matchAll(/[^\\s-]+(-\\d+)?/g)) {
        range.setStart(n, m.index)
        range.setEnd(n, m.index + m[0].length)
        const lines = new Set([...range.getClientRects()].map(r => round(r.top)))
        if (lines.size > 1) faults.push(`broken word: ${m[0]}`)
      }
    }
  }
  for (const i of document.images) {
    if (!i.complete || !i.naturalWidth) told('not loaded', i)
    if (!i.alt.trim()) told('no alternative text', i)
  }
  if (wide) for (const e of document.querySelectorAll('main pre')) {
    const s = getComputedStyle(e), pen = new OffscreenCanvas(1, 1).getContext('2d')
    pen.font = `${s.fontSize} ${getComputedStyle(e.querySelector('code') ?? e).fontFamily}`
    const room = e.clientWidth - parseFloat(s.paddingLeft) - parseFloat(s.paddingRight)
    const narrow = room < pen.measureText('0'.repeat(100)).width
    if (e.clientWidth && narrow && !e.closest('li, blockquote'))
      told('has no room for 100 characters', e)
  }
  return [...new Set(faults)].slice(0, 8) }"""

RAW = re.compile(r"\]\(\S{0,40}|\\[(\[].{0,40}|\$\$.{0,40}|\\(frac|mathbf|beta|sum)\b.{0,40}")
WORDS = """() => { const c = document.querySelector('main').cloneNode(true)
  c.querySelectorAll('pre, code, script, style, annotation, mjx-container').forEach(e => e.remove())
  return c.textContent }"""


SWITCH = """async () => { // to the other theme, and until its colours and its mark are there
  const look = () => [getComputedStyle(document.body).backgroundColor,
    !!document.querySelector('.quarto-dark')]
  const before = look();
  (window.quartoToggleColorScheme ?? smalldocsToggleScheme)()
  for (let i = 0; i < 300 && look().some((value, k) => value === before[k]); i++)
    await new Promise(requestAnimationFrame)
  await new Promise(requestAnimationFrame) }"""


def faults_of(page, wide):
    "What a reader of an open page would stumble over."
    yield from page.evaluate(LAYOUT, wide)
    yield from page.evaluate(CONTRAST.replace(".anim-buttons, .katex-mathml", ".katex"))


@in_browser
@on_both
def test_pages(browser, request, rendering):
    "Nothing sticks out or is cut off, words are whole, text is legible, the console is silent."
    faults = []
    with reader(browser, request.getfixturevalue(rendering)) as read:
        for name in PAGES:
            page = read(name)
            if raw := RAW.search(page.evaluate(WORDS)):
                faults.append(f"{name}: not typeset: {raw[0]}")
            if page.locator(".katex-error, mjx-merror").count():
                faults.append(f"{name}: a formula with an error")
            for place in "light", "light phone", "dark phone", "dark":
                if place == "dark phone":
                    page.evaluate(SWITCH)
                wide = "phone" not in place
                page.set_viewport_size(WINDOW if wide else HAND)
                faults += [f"{name}, {place}: {fault}" for fault in faults_of(page, wide)]
            page.evaluate(SWITCH)
            faults += [f"{name}: {fault}" for fault in page.faults]
    none(faults)


@in_browser
@on_both
@pytest.mark.parametrize("scheme, light", [("light", True), ("dark", False)])
def test_theme_follows_the_system(browser, request, rendering, scheme, light):
    with reader(browser, request.getfixturevalue(rendering), color_scheme=scheme) as read:
        ground = read("index.html").evaluate("getComputedStyle(document.body).backgroundColor")
        assert (min(map(int, re.findall(r"\d+", ground)[:3])) > 128) == light


@in_browser
@on_both
@pytest.mark.parametrize("size", [WINDOW, HAND], ids=["window", "phone"])
def test_first_screen(browser, request, rendering, size):
    "Picture, two sentences and where to start, without scrolling."
    with reader(browser, request.getfixturevalue(rendering), size) as read:
        page = read("index.html")
        ends = lambda css: page.eval_on_selector_all(
            css, "all => all.map(e => e.getBoundingClientRect().bottom)"
        )
        links = page.eval_on_selector_all(".am-start a", "all => all.map(a => a.href)")
        assert [Path(o).name for o in links] == ["data.html", "explorer.html", "01_data.ipynb"]
        assert max(ends(".am-start a") + [ends("main img")[0]]) <= size["height"]


@with_quarto
def test_published_site_stands_alone(quarto_site):
    "It loads nothing from elsewhere but MathJax, and its links to itself are relative."
    home = re.escape(tool.page_url(ROOT))
    loads = r'<(?:script|img|iframe|link(?! rel="canonical"))\b[^>]*="(https?:[^"]+)"'
    found = {
        (path.name, url)
        for path in quarto_site.glob("*.html")
        for url in re.findall(rf'{loads}|<a [^>]*href="({home}[^"]*)"', path.read_text("utf-8"))
    }
    none(sorted(f for f in found if "/npm/mathjax@3/" not in f[1][0]))


@on_both
def test_previews_of_the_search_are_plain(request, rendering):
    text = (request.getfixturevalue(rendering) / "search.json").read_text(encoding="utf-8")
    none([e["href"] for e in json.loads(text) if re.search(r"\\[(\[].*?\\[)\]]", e["text"], re.S)])


@in_browser
@on_both
def test_open_page_is_marked(browser, request, rendering):
    entries = dict(index="Tutorial", explorer="Explorer", api="API", references="References")
    with reader(browser, request.getfixturevalue(rendering)) as read:
        for name, entry in entries.items():
            marked = read(name + ".html").locator(".navbar .nav-link.active").all_inner_texts()
            assert [text.strip() for text in marked] == [entry]


EQUATION = re.compile(r"\$\$(.*?)\$\$", re.S)


@in_browser
@pytest.mark.skipif(not MATHJAX.exists(), reason="django-static-mathjax is not installed")
def test_equations_fit(browser, site):
    "MathJax typesets every displayed equation within the column; on a phone, long ones scroll."
    equations = [
        (path.name, formula)
        for path in tool.notebooks(ROOT)
        for cell in tool.load(path)["cells"]
        if cell["cell_type"] == "markdown"
        for formula in EQUATION.findall(re.sub(r"`[^`]*`", "", tool.source(cell)))
    ]
    escape = lambda s: s.replace("&", "&amp;").replace("<", "&lt;")
    divs = "".join(f"<div class='e'>\\[{escape(formula)}\\]</div>" for _, formula in equations)
    script = "https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-chtml-full.js"
    (site / "equations.htm").write_text(
        f"<!doctype html><meta charset=utf-8><link rel=stylesheet href=styles.css>"
        f"<script>window.MathJax = {{}}</script><script src='{script}'></script>"
        f"<main class=math style='font-size: 17px'>{divs}</main>",
        encoding="utf-8",
    )
    measure = """width => {
      document.querySelector('main').style.width = width + 'px'
      return [...document.querySelectorAll('.e')].map(e => { const m = e.firstElementChild
        return [m.clientWidth, m.scrollWidth, getComputedStyle(m).overflowX] }) }"""
    faults = []
    with reader(browser, site) as read:
        page = read("equations.htm")
        assert page.locator("mjx-merror").count() == 0
        for (name, formula), (box, content, _) in zip(equations, page.evaluate(measure, COLUMN)):
            if max(box, content) > COLUMN:
                faults.append(f"{name}: {content} pixels wide: {formula.strip()[:70]}")
        for (name, formula), (box, content, flow) in zip(equations, page.evaluate(measure, PHONE)):
            if box > PHONE or content > box and flow != "auto":
                faults.append(f"{name}: leaves a phone's page: {formula.strip()[:70]}")
    (site / "equations.htm").unlink()
    none(faults)


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
    page.wait_for_selector(f".search-result[href*='{target}']")


@in_browser
def test_folded_code_opens(open_page, site):
    name = next(
        n for n in PAGES if '<details class="code-fold">' in (site / n).read_text(encoding="utf-8")
    )
    fold = open_page(name).locator("details.code-fold").first
    fold.locator("pre").wait_for(state="hidden")
    fold.locator("summary").press("Enter")
    fold.locator("pre").wait_for(state="visible")


@in_browser
def test_animation_plays(open_page):
    page = open_page("sampling.html")
    player, picture = page.locator(".animation").first, page.locator(".animation img").first
    player.locator("button[title='First frame']").click()
    before = picture.get_attribute("src")
    player.locator("button[title='Play']").click()
    page.wait_for_function(
        "([e, src]) => e.src !== src", arg=[picture.element_handle(), before]
    )
    none(page.faults)
