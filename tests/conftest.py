"""The site, built once on a copy of the checkout and served once, and a browser to read it with."""

import functools
import http.server
import shutil
import subprocess
import sys
import threading

import pytest
from browsing import CHROMIUM, MISSING, open_window
from helpers import ROOT


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
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    pages = []

    def open_page(*args, **kwargs):
        pages.append(open_window(browser, address, *args, **kwargs))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()
