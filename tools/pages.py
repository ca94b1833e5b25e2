#!/usr/bin/env python3
"""Prepare notebooks for the site, and finish its pages; Quarto and smalldocs call it themselves.

    pages.py before    notebooks in _proc/: anchors of definitions, folded imports, relative links
    pages.py after     pages in _proc/_docs/: the active entry of the navigation, plain previews

It runs in _proc/ (`pre-render` and `post-render` in _quarto.yml) on Python's own modules alone.
"""

import ast
import html
import json
import os
import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTION = re.compile(r"#\|.*\n?")


def settings():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


# Before: notebooks


def statements(cell):
    "The top-level statements of a code cell, its first lines of options left out."
    try:
        return ast.parse(OPTION.sub("", cell["source"])).body
    except SyntaxError:  # a magic
        return []


def names_defined(cell):
    "Names of the functions and classes of a cell, and of their methods as `class.method`."
    functions = ast.FunctionDef, ast.AsyncFunctionDef
    for node in statements(cell):
        if isinstance(node, (*functions, ast.ClassDef)):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{f.name}" for f in node.body if isinstance(f, functions))


def anchors(cell, wanted):
    "A Markdown cell with an anchor for every definition of `cell` that links may lead to."
    ids = [name.lower() for name in names_defined(cell)]
    divs = [f'<div class="anchor" id="{i}"></div>' for i in ids if i in wanted]
    wanted.difference_update(ids)  # a later definition of the same name is another one
    if divs:
        return dict(cell_type="markdown", metadata={}, source="\n".join(divs))


def is_import(cell):
    nodes = statements(cell) if cell["cell_type"] == "code" else []
    return bool(nodes) and all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in nodes)


def is_setting(cell, wanted):
    "Folded code that shows nothing and defines nothing that links lead to."
    return (
        cell["source"].startswith("#| code-fold: true")
        and not cell.get("outputs")
        and not wanted & {name.lower() for name in names_defined(cell)}
    )


def fold_imports(cells, wanted):
    "Imports that stand together, and folded settings after them, become one folded cell."
    folded, head = [], '#| code-fold: true\n#| code-summary: "{}"\n'
    for cell in cells:
        code = OPTION.sub("", cell["source"]).strip()
        after_imports = bool(folded) and is_import(folded[-1])
        if after_imports and is_import(cell):
            folded[-1]["source"] += "\n" + code
        elif after_imports and is_setting(cell, wanted):
            imports = OPTION.sub("", folded[-1]["source"])
            folded[-1]["source"] = head.format("Imports and settings") + f"{imports}\n\n{code}"
        else:
            if is_import(cell):
                cell["source"] = head.format("Imports") + code
            folded.append(cell)
    return folded


def figure_of_html(cell, quarto):
    "An animation gets its caption; and as Markdown, Quarto loads no libraries for its sake."
    caption = re.search(r'^#\| fig-cap: "?(.*?)"?\n', cell["source"], re.M)
    for output in cell.get("outputs", []):
        if "text/html" not in (data := output.get("data", {})):
            continue
        text = "".join(data["text/html"])
        if caption:
            cell["source"] = cell["source"].replace(caption[0], "")
            words = f"<figcaption>{html.escape(caption[1])}</figcaption>"
            text = f'<figure class="figure quarto-figure-center">\n{text}\n{words}\n</figure>'
        kind, text = ("markdown", f"```{{=html}}\n{text}\n```\n") if quarto else ("html", text)
        output["data"] = {f"text/{kind}": text.splitlines(True)}


def page_of(path):
    "The page of a notebook: nbdev drops the number."
    return re.sub(r"^\d+[a-zA-Z0-9]*_", "", path.stem.lower()) + ".html"


def relative_links(folder):
    "A function on Markdown: links to this site name notebooks, those out of nbs/ the repository."
    cfg = settings()
    home, source = cfg["doc_host"] + cfg["doc_baseurl"], f"{cfg['git_url']}/blob/{cfg['branch']}"
    notebooks = {page_of(path): path.name for path in folder.glob("*.ipynb")}
    place = re.compile(rf"\]\({re.escape(home)}/([\w-]+\.html)")

    def relative(text):
        text = place.sub(lambda m: "](" + notebooks.get(m[1], m[1]), text)
        return text.replace("](../", f"]({source}/")

    return relative


def shown(cells, wanted, relative):
    "The cells as the site shows them."
    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = relative(cell["source"])
        if cell["cell_type"] == "code":
            figure_of_html(cell, quarto="SMALLDOCS" not in os.environ)
            for data in (output.get("data", {}) for output in cell["outputs"]):
                if text := "".join(data.get("text/markdown", "")):
                    data["text/markdown"] = relative(text).splitlines(True)
            yield from filter(None, [anchors(cell, wanted)])
        yield cell


def before(folder):
    scope, relative = {}, relative_links(folder)
    exec((ROOT / settings()["lib_path"] / "_modidx.py").read_text(encoding="utf-8"), scope)
    places = [place for names in scope["d"]["syms"].values() for place, _ in names.values()]
    for path in folder.glob("*.ipynb"):
        nb = json.loads(path.read_text(encoding="utf-8"))
        if nb["metadata"].get("prepared"):  # nbdev keeps what has not changed
            continue
        page = page_of(path) + "#"
        wanted = {p.removeprefix(page) for p in places if p.startswith(page)}
        cells = [c | dict(source="".join(c["source"])) for c in nb["cells"]]
        cells = [c for c in cells if c["source"].strip()]
        if path.stem != "index":  # whose imports are part of its ten lines
            cells = fold_imports(cells, wanted)
        nb["cells"] = list(shown(cells, wanted, relative))
        for cell in nb["cells"]:
            cell["source"] = cell["source"].splitlines(True)
        nb["metadata"]["prepared"] = True
        path.write_text(json.dumps(nb, ensure_ascii=False), encoding="utf-8")


# After: pages

LETTERS = "alpha α beta β sigma σ xi ξ mu μ pi π theta θ lambda λ nabla ∇ partial ∂ sum Σ int ∫"
SIGNS = "infty ∞ times × cdot · le ≤ ge ≥ approx ≈ sim ~ to → sqrt √ ll ≪ gg ≫ pm ± mid | lVert |"
CELL = re.compile(r"<(t[dh])\b([^>]*)>(.*?)</\1>", re.S)
FORMULA = re.compile(r'<span class="math inline">\\\((.*?)\\\)</span>', re.S)
SYMBOLS = dict(zip((LETTERS + " " + SIGNS).split()[::2], (LETTERS + " " + SIGNS).split()[1::2]))


def plain(formula):
    "A LaTeX formula as a line of text."
    text = re.sub(r"\\([a-zA-Z]+)", lambda m: SYMBOLS.get(m[1], ""), formula[1])
    return re.sub(r"\s+", " ", re.sub(r"\\[^a-zA-Z]|[{}&]", " ", text)).strip()


def plain_previews(file):
    "Search results show sentences, not LaTeX."
    entries = json.loads(file.read_text(encoding="utf-8"))
    for entry in entries:
        entry["text"] = re.sub(r"\\[(\[](.*?)\\[)\]]", plain, entry["text"], flags=re.S)
    file.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")


def mark_long(formula):
    "A formula in the text that may be wider than a phone's page gets a class of its own."
    kind = "math inline long" if len(plain(formula)) > 24 else "math inline"
    return f'<span class="{kind}">\\({formula[1]}\\)</span>'


def mark_short(cell):
    "A short entry of a table stays on one line."
    words = html.unescape(re.sub(r"<[^>]+>", "", cell[3])).strip()
    return f"<{cell[1]}{' data-short' * (len(words) < 13)}{cell[2]}>{cell[3]}</{cell[1]}>"


def mark_open_page(text, name):
    "Quarto marks the navigation's first entry on every page; here, the page's own if it has one."
    entry = '<a class="nav-link{}" href="./{}"{}'
    on, off = (" active", ' aria-current="page"'), ("", "")
    first, own = "index.html", entry.format(off[0], name, off[1])
    if own in text:
        text = text.replace(entry.format(on[0], first, on[1]), entry.format(off[0], first, off[1]))
        text = text.replace(own, entry.format(on[0], name, on[1]))
    return text


def after(built):
    plain_previews(built / "search.json")
    for path in built.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        text = re.sub(r'\s*<script src="[^"]*/polyfill\.min\.js[^"]*"></script>', "", text)
        text = FORMULA.sub(mark_long, CELL.sub(mark_short, text))
        path.write_text(mark_open_page(text, path.name), encoding="utf-8")


def main(step):
    return before(Path.cwd()) if step == "before" else after(Path.cwd() / "_docs")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
