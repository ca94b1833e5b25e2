#!/usr/bin/env python3
"""Keep the notebooks, and everything that is made from them, in step.

    execute [NB ...]  run notebooks in place, each in a process of its own (default: all of them)
    stamp             make notebooks plain, with Colab badge and install cell in every chapter
    colab             write a clean copy of every chapter to tutorial_ipynbs/
    readme            write README.md, and its pictures in assets/, from nbs/index.ipynb
    sync              stamp, export and clean with nbdev, colab, readme
    check             name what `sync` would change; exit 1 if there is anything

The repository's address comes from settings.ini alone.
"""

import argparse
import base64
import contextlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from configparser import ConfigParser
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
BADGE, INSTALL = "colab-badge", "colab-install"  # ids of the stamped cells
COPIES, ASSETS = "tutorial_ipynbs", "assets"
NBDEV_LINE = re.compile(r"\s*(from|import) nbdev\b|\s*(show_doc|nbdev_export)\(")
DIRECTIVE = re.compile(r"\s*#\s*\|")
KERNEL = dict(display_name="python3", language="python", name="python3")
SHOWN = {"image/png", "image/svg+xml", "text/html", "text/latex", "text/markdown", "text/plain"}


# Files and cells


def settings(root):
    parser = ConfigParser(delimiters=["="])
    parser.read(root / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def notebooks(root):
    return sorted((root / "nbs").glob("[!_.]*.ipynb"))


def chapters(root):
    return sorted((root / "nbs").glob("[0-9][0-9]_*.ipynb"))


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def dump(nb):
    return json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def source(cell):
    return "".join(cell["source"])


def write(path, content):
    "Write text or bytes in one step, and only if they differ from what is there."
    if isinstance(content, str):
        content = content.encode()
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(path.name + ".tmp")
    part.write_bytes(content)
    os.replace(part, path)


def make_cell(kind, id, text):
    cell = dict(cell_type=kind, id=id, metadata={}, source=text.splitlines(True))
    return cell | dict(execution_count=None, outputs=[]) if kind == "code" else cell


def notebook(cells):
    """A notebook of these cells that reads the same everywhere.

    The state of widgets, the name of somebody's kernel and Colab's notes stay behind; ids that
    Colab has moved into the metadata come back.
    """
    kept = lambda c: {k: v for k, v in c["metadata"].items() if k == "id"}
    cells = [kept(c) | c | dict(metadata={}) for c in cells]
    return dict(cells=cells, metadata=dict(kernelspec=KERNEL), nbformat=4, nbformat_minor=5)


def directives(cell):
    "The `#| name: value` lines of a code cell, as a dict."
    pairs = re.findall(r"^\s*#\s*\|\s*([\w-]+):?[ \t]*(.*)$", source(cell), re.M)
    return {
        name: yaml.safe_load(value) if value[:1] in ("'", '"') else value.strip()
        for name, value in pairs
    }


def code_of(cell):
    "A code cell without directives and without lines that only nbdev understands."
    lines = [
        o for o in source(cell).splitlines() if not DIRECTIVE.match(o) and not NBDEV_LINE.match(o)
    ]
    return "\n".join(lines).strip("\n")


# Addresses


def colab_url(cfg, name):
    place = f"{cfg['user']}/{cfg['repo']}/blob/{cfg['branch']}/{COPIES}/{name}"
    return f"https://colab.research.google.com/github/{place}"


def colab_badge(cfg, name):
    return f"[![Open in Colab](colab-badge.svg)]({colab_url(cfg, name)})"


def raw_url(cfg, path):
    return f"https://raw.githubusercontent.com/{cfg['user']}/{cfg['repo']}/{cfg['branch']}/{path}"


def page_url(root, path=None):
    "The page of a notebook on the site (nbdev drops the number), or the site itself."
    cfg = settings(root)
    page = re.sub(r"^\d+[a-zA-Z0-9]*_", "", path.stem.lower()) + ".html" if path else ""
    return f"{cfg['doc_host']}{cfg['doc_baseurl']}/{page}"


def absolute_links(text, root, notebook_url):
    "Make relative links in Markdown absolute; `notebook_url(path)` is where a notebook is read."
    cfg = settings(root)

    def replace(match):
        before, target = match.groups()
        name, _, anchor = target.partition("#")
        path = (root / "nbs" / name).resolve()
        if not name or not path.is_file() or root.resolve() not in path.parents:
            return match[0]
        here = path.relative_to(root.resolve()).as_posix()
        if path.suffix == ".ipynb":
            url = notebook_url(path)
        elif path.suffix in (".png", ".svg", ".jpg", ".gif"):
            url = raw_url(cfg, here)
        else:
            url = f"{cfg['git_url']}/blob/{cfg['branch']}/{here}"
        return before + url + ("#" + anchor if anchor else "")

    return re.sub(r"(\]\(|(?:src|href)=\")([^)\"\s:]+)", replace, text)


# Running


def output_text(output):
    "What a reader would see of an output, without the bytes of its pictures."
    if output["output_type"] == "stream":
        return "".join(output["text"])
    if output["output_type"] == "error":
        return "\n".join(output["traceback"])
    text = "\n".join(
        "".join(value)
        for mime, value in output["data"].items()
        if isinstance(value, (str, list)) and mime[:6] != "image/"
    )
    return re.sub(r"base64,[A-Za-z0-9+/=\s\\]+", "", text)


def output_faults(nb):
    "What must not be committed: errors, stderr, warnings, and paths of the machine."
    faults = []
    for cell in nb["cells"]:
        for output in cell.get("outputs", []):
            where, text = f"cell {cell['id']}", output_text(output)
            if output["output_type"] == "error":
                faults.append(f"{where}: an error, {output.get('ename')}: {output.get('evalue')}")
            for mime in output.get("data", {}).keys() - SHOWN:
                faults.append(f"{where}: {mime} is not shown everywhere")
            if output.get("name") == "stderr":
                faults.append(f"{where}: output on stderr: {text.strip()[:200]}")
            if found := re.search(r"\w{0,40}Warning\b", text):
                faults.append(f"{where}: a warning ({found[0]})")
            if found := re.search(
                r"(?<![\w.:/])/(home|root|tmp|work|Users|private|content)/\S*"
                r"|(?<![A-Za-z])[A-Z]:\\\\?Users\S*",
                text,
            ):
                faults.append(f"{where}: a path of this machine ({found[0]})")
    return faults


def execute_one(path):
    "Run one notebook here, and write it back, cleaned, if nothing is wrong. True on success."
    from execnb.nbio import nb2dict, read_nb
    from execnb.shell import CaptureShell
    from nbdev.clean import clean_nb

    nb, start = read_nb(path), time.perf_counter()
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    shell = CaptureShell(path, mpl_format="retina")
    try:
        with contextlib.chdir(path.parent):
            shell.run_all(nb, exc_stop=True)
    except BaseException:
        print(shell.prettytb(path) if shell.exc else traceback.format_exc(), file=sys.stderr)
        return False
    nb = nb2dict(nb)
    clean_nb(nb)
    if faults := output_faults(nb):
        print(f"{path}: not written.", *faults, sep="\n  ", file=sys.stderr)
        return False
    write(path, dump(nb))
    print(f"{time.perf_counter() - start:6.1f} s  {path.name}", flush=True)
    return True


def execute(paths):
    "Run notebooks in order, each in a process of its own. True if all succeeded."
    os.environ.update(TQDM_DISABLE="1", OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"))
    if len(paths) == 1:
        return execute_one(paths[0])
    failed = [
        p.name for p in paths if subprocess.run([sys.executable, __file__, "execute", p]).returncode
    ]
    if failed:
        print("failed:", *failed, file=sys.stderr)
    return not failed


# The Colab badge and install cell


def stamped_cells(root, name):
    cfg = settings(root)
    install = (
        f"#| hide\nimport sys\nif 'google.colab' in sys.modules:\n"
        f'    %pip install -q "{cfg["lib_name"]} @ git+{cfg["git_url"]}.git@{cfg["branch"]}"\n'
        f"    import {cfg['lib_path']}  # noqa: F401 (a failed install ends here)"
    )
    text = colab_badge(cfg, name) + " runs this chapter in your browser."
    badge = make_cell("markdown", BADGE, text)
    return [badge, make_cell("code", INSTALL, install)]


def readdress(text, old, new):
    "Put the repository `new` = (user, repo) for `old` in the addresses of a text."
    for form in [
        "github.com/{}/{}",
        "githubusercontent.com/{}/{}",
        "/github/{}/{}",
        "{}.github.io/{}",
    ]:
        text = re.sub(
            rf"\b{re.escape(form.format(*old)).lstrip('/')}(?![\w-])",
            form.format(*new).lstrip("/"),
            text,
        )
    return text


def stamp(root):
    "Plain notebooks; a badge and an install cell after every chapter's title; one address."
    cfg = settings(root)
    new, old = (cfg["user"], cfg["repo"]), None
    for path in notebooks(root):
        text = path.read_text(encoding="utf-8")
        old = (
            old
            or re.findall(r"/github/([\w.-]+)/([\w.-]+)/blob/[^)]*" + re.escape(path.name), text)[
                :1
            ]
        )
        nb = json.loads(readdress(text, old[0], new) if old and old[0] != new else text)
        cells = notebook(nb["cells"])["cells"]
        if path in chapters(root):
            cells = [c for c in cells if c.get("id") not in (BADGE, INSTALL)]
            cells = cells[:1] + stamped_cells(root, path.name) + cells[1:]
        write(path, dump(notebook(cells)))


# Clean copies for Colab


def colab_cell(cell, root):
    "A cell as Colab gets it, or None for one that has no place there."
    if cell["cell_type"] != "code":
        url = lambda p: (
            colab_url(settings(root), p.name) if p.name[:2].isdigit() else page_url(root, p)
        )
        return make_cell(cell["cell_type"], cell["id"], absolute_links(source(cell), root, url))
    if "hide" in directives(cell) and cell["id"] != INSTALL:
        return None
    code = code_of(cell)
    return make_cell("code", cell["id"], code) if code else None


def colab(root):
    "A clean copy of every chapter; copies of chapters that are gone are removed."
    for path in chapters(root):
        cells = [c for c in (colab_cell(c, root) for c in load(path)["cells"]) if c]
        write(root / COPIES / path.name, dump(notebook(cells)))
    for path in (root / COPIES).glob("*.ipynb"):
        if not (root / "nbs" / path.name).exists():
            path.unlink()


# README


def fence(text, language=""):
    return f"```{language}\n{text.rstrip()}\n```"


def readme_output(output, alt, picture):
    "An output as Markdown; `picture(base64)` stores a PNG and returns its address."
    if output["output_type"] == "stream":
        return fence("".join(output["text"]))
    data = {
        mime: "".join(value)
        for mime, value in output["data"].items()
        if isinstance(value, (str, list))
    }
    if "text/markdown" in data:
        return data["text/markdown"].strip()
    if "image/png" in data:
        width = output["metadata"].get("image/png", {}).get("width")
        size = f' width="{width}"' if width else ""
        return f'<img src="{picture(data["image/png"])}" alt="{html.escape(alt)}"{size}>'
    if "text/html" in data and "<script" not in data["text/html"]:
        return re.sub(
            r"data:image/png;base64,([A-Za-z0-9+/=\s]+)", lambda m: picture(m[1]), data["text/html"]
        ).strip()
    return fence(data.get("text/plain", ""))


def readme_cell(cell, root, picture):
    "A cell of the index as Markdown, in the order code, output."
    link = lambda text: absolute_links(text, root, lambda p: page_url(root, p))
    if cell["cell_type"] != "code":
        return [link(source(cell))]
    given, code, parts = directives(cell), code_of(cell), []
    if "hide" in given or given.get("include") == "false":
        return []
    if code and given.get("echo") != "false":
        shown = fence(code, "python")
        parts.append(
            f"<details>\n<summary>Code</summary>\n\n{shown}\n\n</details>"
            if given.get("code-fold") == "true"
            else shown
        )
    if given.get("output") != "false":
        parts += [
            link(readme_output(o, given.get("fig-alt", ""), picture)) for o in cell["outputs"]
        ]
        if "fig-cap" in given:
            parts.append(f"*{given['fig-cap']}*")
    return parts


def badges(root):
    cfg = settings(root)
    first = next(p for p in chapters(root) if p.name >= "01")
    flow = lambda name: f"{cfg['git_url']}/actions/workflows/{name}.yml"
    colab = absolute_links(colab_badge(cfg, first.name), root, None)
    return (
        f"[![tests]({flow('test')}/badge.svg)]({flow('test')}) "
        f"[![site]({flow('deploy')}/badge.svg)]({page_url(root)}) {colab}"
    )


def readme(root):
    "README.md: the cells of the index with their outputs, absolute links, badges after the title."
    pictures = []

    def picture(data):
        name = f"{ASSETS}/index-{len(pictures) + 1}.png"
        write(root / name, base64.b64decode(data))
        pictures.append(root / name)
        return raw_url(settings(root), name)

    parts = [
        part
        for cell in load(root / "nbs" / "index.ipynb")["cells"]
        for part in readme_cell(cell, root, picture)
    ]
    note = "<!-- Written by `make sync` from nbs/index.ipynb: edit that. -->"
    write(
        root / "README.md",
        "\n\n".join(
            [note, parts[0].strip(), badges(root)] + [p.strip() for p in parts[1:] if p.strip()]
        )
        + "\n",
    )
    for path in (root / ASSETS).glob("index-*.png"):
        if path not in pictures:
            path.unlink()


# All of it


def narrow(match):
    "nbdev's `__all__`, which is 120 columns wide, in 100."
    names = " ".join(match[0].split())
    return textwrap.fill(names, 100, subsequent_indent=" " * 11, break_long_words=False)


def export(root):
    "nbdev's export and clean; modules that no notebook exports any more are removed."
    names = {
        m
        for path in notebooks(root)
        for c in load(path)["cells"]
        for m in re.findall(r"^#\s*\|\s*default_exp\s+(\S+)", source(c), re.M)
    }
    for path in (root / settings(root)["lib_path"]).glob("[!_]*.py"):
        if path.stem not in names:
            path.unlink()
    code = (
        "from nbdev.doclinks import nbdev_export as export; "
        "from nbdev.clean import nbdev_clean as clean; "
        "export.__wrapped__(); clean.__wrapped__()"
    )
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    subprocess.run([sys.executable, "-c", code], cwd=root, env=env, check=True)
    for path in (root / settings(root)["lib_path"]).glob("[!_]*.py"):
        text = path.read_text(encoding="utf-8")
        write(path, re.sub(r"^__all__ = \[.*?\]$", narrow, text, flags=re.M | re.S))


def sync(root):
    for step in stamp, export, colab, readme:
        step(root)


def made(root):
    "Everything that `sync` writes, by name."
    patterns = (
        "nbs/*.ipynb",
        f"{settings(root)['lib_path']}/*.py",
        f"{COPIES}/*",
        f"{ASSETS}/index-*.png",
        "README.md",
        "pyproject.toml",
    )
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for pattern in patterns
        for p in root.glob(pattern)
        if p.is_file()
    }


def stale(root):
    "What `sync` would change, found by running it on a copy."
    with tempfile.TemporaryDirectory() as d:
        copy = Path(d).resolve()
        for name in (
            "settings.ini",
            "_quarto.yml",
            "nbs",
            settings(root)["lib_path"],
            COPIES,
            ASSETS,
            "README.md",
            "pyproject.toml",
            "CONTRIBUTING.md",
        ):
            if (root / name).is_dir():
                shutil.copytree(root / name, copy / name, symlinks=True)
            elif (root / name).exists():
                shutil.copy2(root / name, copy / name)
        sync(copy)
        before, after = made(root), made(copy)
    return sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["execute", "stamp", "colab", "readme", "sync", "check"])
    parser.add_argument("notebook", nargs="*", type=Path, help="for execute: the notebooks to run")
    args = parser.parse_args()
    if args.command == "execute":
        return not execute([p.resolve() for p in args.notebook] or notebooks(ROOT))
    if args.command != "check":
        return dict(stamp=stamp, colab=colab, readme=readme, sync=sync)[args.command](ROOT)
    for name in (names := stale(ROOT)):
        print(f"{name}: out of step with the notebooks")
    if names:
        return "run `make sync`, and commit what it changes"


if __name__ == "__main__":
    sys.exit(main())
