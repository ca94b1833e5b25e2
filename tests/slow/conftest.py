"""The slow tests write what they measured into tests/README.md.

A test says `record_property("figure:NAME", value)`. A run replaces the lines of the tests that
passed in it and leaves all others. `python tests/slow/conftest.py FILE` does the same with what
`tools/mutants.py --out FILE` has found.
"""

import json
import os
import platform
import re
import sys
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
HEAD = "| figure | value | measured with |\n|---|---|---|\n"
MEASURED = "## Measured\n"


def machine():
    torch = version("torch").partition("+")[0]
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch}"


def lines_of(text):
    "Section -> name -> the rest of its line, as they stand in the text."
    found = {}
    for part in text.split("\n### ")[1:]:
        title, _, table = part.partition("\n")
        found[title] = dict(re.findall(r"^\| (?!figure )(.+?) (\| .* \| .* \|)$", table, re.M))
    return found


def record(figures, readme=README):
    "Put section -> name -> value into the tables of the file, each line with the machine."
    text = readme.read_text(encoding="utf-8")
    before, _, after = text.partition(MEASURED)
    tables = lines_of(after)
    plain = lambda text: " ".join(str(text).replace("|", "/").split())
    for section, values in figures.items():
        rows = {plain(name): f"| {plain(value)} | {machine()} |" for name, value in values.items()}
        tables[section] = tables.get(section, {}) | rows
    parts = [
        f"### {section}\n\n{HEAD}" + "".join(f"| {name} {rest}\n" for name, rest in rows.items())
        for section, rows in sorted(tables.items())
    ]
    intro = after.partition("\n### ")[0].strip("\n")
    text = "\n".join([before + MEASURED, intro + "\n", *parts])
    readme.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def of_mutants(report):
    "What `tools/mutants.py` found, in all and by module."
    groups = defaultdict(Counter)
    for fault in report["faults"]:
        for group in "all modules", fault["module"]:
            groups[group][fault["outcome"]] += 1
    told = lambda n: f"{n['caught']} of {n.total() - n['excused']}, {n['excused']} excused"
    figures = {f"single faults caught, {name}": told(n) for name, n in groups.items()}
    return {"mutants": figures | dict(time=f"{report['seconds'] / 60:.0f} minutes")}


def pytest_terminal_summary(terminalreporter):
    figures = defaultdict(dict)
    for test in terminalreporter.getreports("passed"):
        for name, value in test.user_properties:
            if name.startswith("figure:"):
                section = Path(test.nodeid.partition("::")[0]).stem.removeprefix("test_")
                figures[section][name.removeprefix("figure:")] = value
    if figures:
        record(figures)


if __name__ == "__main__":
    record(of_mutants(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
