#!/usr/bin/env python3
"""Build the site in _docs/ from the notebooks' committed outputs.

With Quarto if it is installed, otherwise (or as `site.py smalldocs`) with smalldocs. Both call
`pages.py` before and after, as _quarto.yml says; so `nbdev_docs` makes the same site.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def process():
    "What nbdev does before the rendering: notebooks in _proc/, with titles and links."
    import nbdev.doclinks
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs

    refresh_quarto_yml()
    nbdev.doclinks._build_modidx()
    return proc_nbs(force=True, n_workers=2)


def notes_for_smalldocs(folder):
    "What smalldocs does not read: page names, and widths of pictures by their first characters."
    names, widths, options = {}, {}, folder / "_quarto.yml"
    unread = r"^    (respect-user-color-scheme: .*|grid:(\n      .*)*)\n"
    options.write_text(re.sub(unread, "", options.read_text("utf-8"), flags=re.M), "utf-8")
    for path in folder.glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        for output in (
            o
            for c in json.loads(text)["cells"]
            for o in c.get("outputs", [])
            if "image/png" in o.get("data", {})
        ):
            if width := output["metadata"].get("image/png", {}).get("width"):
                widths["".join(output["data"]["image/png"]).replace("\n", "")[:400]] = width
        if found := re.search(r'\s*"output-file: (\S+?)\\n",', text):
            names[path.stem + ".html"] = found[1]
            path.write_text(text.replace(found[0], "", 1), encoding="utf-8")
    return names, widths


def finish(built, names, widths):
    "Quarto's page names and widths of pictures."
    pages = "|".join(map(re.escape, names))

    def sized(match):
        width = widths.get(match[2])
        return (
            f'{match[1]} width="{width}"' if width else match[1]
        ) + f' src="data:image/png;base64,{match[2]}'

    for path in [*built.glob("*.html"), built / "search.json", built / "sitemap.xml"]:
        text = re.sub(rf"\b({pages})\b", lambda m: names[m[1]], path.read_text(encoding="utf-8"))
        if path.suffix == ".html":
            text = re.sub(
                r'(<img(?: alt="[^"]*")?) src="data:image/png;base64,([\w+/]{400})', sized, text
            )
        path.write_text(text, encoding="utf-8")
        if path.name in names:
            path.rename(built / names[path.name])


def main():
    os.chdir(ROOT)
    quarto = shutil.which("quarto") if sys.argv[1:] != ["smalldocs"] else None
    folder = process()
    notes = None if quarto else notes_for_smalldocs(folder)
    command = (
        [quarto, "render", "--no-cache"]
        if quarto
        else [Path(sys.executable).with_name("smalldocs"), "render", "--quiet"]
    )
    if code := subprocess.run(command, cwd=folder).returncode:
        return code
    built = ROOT / "_docs"
    shutil.rmtree(built, ignore_errors=True)
    shutil.move(folder / built.name, built)
    if not quarto:
        finish(built, *notes)
    print(f"built {built.name}/index.html", flush=True)


if __name__ == "__main__":
    sys.exit(main())
