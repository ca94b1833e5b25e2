"""A real browser on the site. Chromium and KaTeX are the system's: see `.ci/run`."""

import os
import re
import shutil
import sysconfig
from pathlib import Path
from urllib.parse import urlsplit

import pytest

SHARE = Path("/usr/share")  # package libjs-katex of Debian and Ubuntu
CHROMIUM = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)
LOCAL = {
    "cdn.jsdelivr.net/npm/katex": SHARE / "javascript" / "katex",
}
# MathJax 3 comes with the Python package django-static-mathjax.
MATHJAX = Path(sysconfig.get_path("purelib")) / "mathjax" / "static" / "mathjax"
MISSING = ([] if CHROMIUM else ["Chromium"]) + [
    f"{path.name} in {path.parent}" for path in LOCAL.values() if not path.exists()
]
in_browser = pytest.mark.skipif(
    bool(MISSING) and not os.environ.get("CI"), reason=f"not installed: {', '.join(MISSING)}"
)


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
    if "/npm/mathjax@3/" in url:
        return route.fulfill(path=MATHJAX / urlsplit(url).path.split("/npm/mathjax@3/")[1])
    for prefix, folder in LOCAL.items():
        if prefix in url:
            file = folder / re.sub(r".*?/(?:dist|[\d.]+)/", "", urlsplit(url).path, count=1)
            for path in file, file.with_name(file.name.replace(".min.", ".")):
                if path.exists():
                    return route.fulfill(path=path)
    route.abort()


def open_window(browser, address, name, width=1280, handlers=None, requests=None, **kwargs):
    """A page in a window of its own; what the console complained about is in `page.faults`.

    `handlers` answer requests by pattern; the list `requests` collects the addresses asked for.
    """
    context = browser.new_context(viewport=dict(width=width, height=800), **kwargs)
    context.route(re.compile("^https:"), from_disk)
    page = context.new_page()
    page.set_default_timeout(90_000)  # on a busy machine
    page.faults = []
    for pattern, handler in (handlers or {}).items():
        page.route(pattern, handler)
    if requests is not None:
        page.on("request", lambda r: requests.append(r.url))
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


def next_frame(page):
    "Wait until everything that was asked for before stands on the page."
    page.evaluate("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")


CONTRAST = """() => {
  const dab = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true })
  const known = new Map(), paint = colours => {
    const key = colours.join()
    if (known.has(key)) return known.get(key)
    dab.clearRect(0, 0, 1, 1)
    for (const c of ['#fff', ...colours]) { dab.fillStyle = c; dab.fillRect(0, 0, 1, 1) }
    known.set(key, dab.getImageData(0, 0, 1, 1).data)
    return known.get(key) }
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
