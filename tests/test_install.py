"""What a user gets: the package as pip installs it, and a README that is true."""

import os
import re

import pytest
from helpers import CFG, ROOT, call, install_wheel, tool

README = (ROOT / "README.md").read_text(encoding="utf-8")
DEVELOPMENT = [
    "nbdev",
    "execnb",
    "fastcore",
    "ghapi",
    "smalldocs",
    "IPython",
    "ipykernel",
    "jupyter_client",
    "pytest",
    "hypothesis",
    "playwright",
]
# an import of any of these fails from here on
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({DEVELOPMENT}, None));"


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    "An environment in which the wheel, built by way of the sdist, hides the checkout."
    site = install_wheel(tmp_path_factory)
    return os.environ | dict(PYTHONPATH=str(site))


def test_no_development_package_is_needed(installed, tmp_path):
    modules = ", ".join(
        f"{CFG['lib_path']}.{p.stem}" for p in (ROOT / CFG["lib_path"]).glob("[!_]*.py")
    )
    assert call(
        "-c",
        f"{BLOCK} import {modules}; print({CFG['lib_path']}.__file__)",
        env=installed,
        cwd=tmp_path,
    ).startswith(installed["PYTHONPATH"])


def test_start_is_quick(installed, tmp_path):
    "The package and its command import nothing heavy to begin with."
    heavy = "torch", "matplotlib", "sklearn", "scipy"
    call(
        "-c",
        f"{BLOCK} import {CFG['lib_path']}, {CFG['lib_path']}.cli; "
        f"assert not sys.modules.keys() & {set(heavy)}",
        env=installed,
        cwd=tmp_path,
    )
    assert "usage: amtutorial" in call("-m", CFG["lib_path"], "--help", env=installed, cwd=tmp_path)


def test_readme_code_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    call(
        "-c",
        "\n".join(blocks),
        cwd=tmp_path,
        env=os.environ | dict(MPLBACKEND="agg", TQDM_DISABLE="1"),
    )


def test_readme_commands_exist():
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S))
    used = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.M))
    assert used and used <= targets, f"not in the Makefile: {used - targets}"
    for option in re.findall(r"amtutorial .*?(--[a-z-]+)", shell):
        assert option in call("-m", CFG["lib_path"], "--help"), option
    for path in re.findall(r"[\w./-]+\.(?:txt|ini|py)\b", shell):
        assert (ROOT / path).exists(), path


def own_file(url):
    "The file of the checkout behind an address of this project; None for other addresses."
    repo, ref = re.escape(f"{CFG['user']}/{CFG['repo']}"), re.escape(CFG["branch"])
    for form in (
        rf"https://github\.com/{repo}/(?:blob|edit|tree)/{ref}/(\S+)",
        rf"https://raw\.githubusercontent\.com/{repo}/{ref}/(\S+)",
        rf"https://colab\.research\.google\.com/github/{repo}/blob/{ref}/(\S+)",
        rf"https://github\.com/{repo}/actions/workflows/(\w+\.yml).*",
    ):
        if found := re.fullmatch(form, url.partition("#")[0]):
            return ROOT / (".github/workflows" if "actions" in form else "") / found[1]
    if url.startswith(home := tool.page_url(ROOT)):
        pages = {tool.page_url(ROOT, p): p for p in tool.notebooks(ROOT)} | {
            home: ROOT / "nbs" / "index.ipynb"
        }
        return pages.get(url.partition("#")[0], ROOT / "no page of the site")


def test_readme_links():
    links = re.findall(r"\]\(([^)\s]+)\)", README) + re.findall(r'(?:src|href)="([^"]+)"', README)
    own = {url: path for url in links if (path := own_file(url))}
    faults = [f"{url}: not there" for url, path in own.items() if not path.exists()] + [
        f"{url}: relative, so dead on PyPI" for url in links if ":" not in url and url[0] != "#"
    ]
    assert len(own) > 10 and not faults, "\n".join(faults)
