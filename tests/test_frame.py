"""The rules that keep the notebooks, and all that is made from them, trustworthy. Quick."""

import ast
import importlib
import inspect
import io
import re
import shutil
import sys
import textwrap
import tokenize
from dataclasses import is_dataclass

import pytest
from helpers import CFG, ROOT, none, tool
from packaging.requirements import Requirement

PACKAGE = CFG["lib_path"]
NOTEBOOKS = tool.notebooks(ROOT)
CHAPTERS = tool.chapters(ROOT)
MODULES = {
    m: path
    for path in NOTEBOOKS
    for c in tool.load(path)["cells"]
    if (m := tool.directives(c).get("default_exp"))
}
on_notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
on_modules = pytest.mark.parametrize("module", MODULES)


def code_cells(path):
    return [c for c in tool.load(path)["cells"] if c["cell_type"] == "code"]


def tree_of(cell):
    "The syntax tree of a cell, IPython's magics left out."
    return ast.parse(
        "\n".join(
            "" if re.match(r"\s*[%!]", line) else line for line in tool.source(cell).splitlines()
        )
    )


def package_imports(tree):
    "Modules of the package that a tree imports, at any depth (`__version__` is none)."
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (PACKAGE + "." if node.level else "") + (node.module or "")
            names = [base] + [f"{base.rstrip('.')}.{a.name}" for a in node.names]
        for name in names:
            if re.match(rf"{PACKAGE}\.[^_]", name):
                yield name.split(".")[1]


# In step


def test_everything_is_in_step_with_the_notebooks():
    none([f"{name}: out of step with the notebooks; run `make sync`" for name in tool.stale(ROOT)])


def test_addresses_come_from_settings():
    given = CFG["user"], CFG["repo"]
    shapes = (
        r"github\.com/([\w.-]+)/([\w-]+)",
        r"githubusercontent\.com/([\w.-]+)/([\w-]+)",
        r"/github/([\w.-]+)/([\w-]+)",
        r"\b([\w-]+)\.github\.io/([\w-]+)",
    )
    files = NOTEBOOKS + [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CITATION.cff")]
    none(
        [
            f"{p.name}: {m[0]} disagrees with settings.ini"
            for p in files
            for shape in shapes
            for m in re.finditer(shape, p.read_text(encoding="utf-8"))
            if m[2] == given[1] and m.groups() != given
        ]
    )


def test_sidebar_lists_every_notebook():
    listed = set(re.findall(r"- (\w+\.ipynb)", (ROOT / "_quarto.yml").read_text()))
    assert listed == {p.name for p in NOTEBOOKS}, "the sidebar in _quarto.yml and nbs/ differ"
    assert (ROOT / "nbs" / "_quarto.yml").resolve() == ROOT / "_quarto.yml", (
        "nbs/_quarto.yml must link to ../_quarto.yml"
    )


def titles():
    "Title of every notebook, as its first cell has it."
    return {p.name: tool.source(tool.load(p)["cells"][0]).splitlines()[0][2:] for p in NOTEBOOKS}


def test_numbers_and_names_agree_everywhere():
    "File, title, order of the sidebar and table of the index say the same."
    faults = []
    for name, title in titles().items():
        number = int(name[:2]) if name[:2].isdigit() else 0
        if number and not title.startswith(f"{number} "):
            faults.append(f"{name} is titled {title!r}")
    order = re.findall(r"- (\d\d_\w+\.ipynb)", (ROOT / "_quarto.yml").read_text())
    chapters = [name for name in order if name > "01"]
    if chapters != sorted(chapters):
        faults.append(f"the sidebar's order is {chapters}")
    index = "".join(tool.source(c) for c in tool.load(ROOT / "nbs" / "index.ipynb")["cells"])
    for name, title in titles().items():
        if name in chapters and f"[{title}]({name})" not in index:
            faults.append(f"the index does not list [{title}]({name})")
    none(faults)


def test_chapters_are_called_by_their_numbers():
    "`[chapter 5](05_retrieval.ipynb)`: text and target agree."
    pattern = r"\[(?:[Cc]hapter )(\d+)\]\((\w+)\.ipynb"
    none(
        [
            f"{p.name}: chapter {number} links to {target}"
            for p in NOTEBOOKS
            for c in tool.load(p)["cells"]
            for number, target in re.findall(pattern, tool.source(c))
            if not re.match(rf"0*{number}_", target)
        ]
    )


# How a chapter reads


@on_notebooks
def test_code_fits_the_column(path):
    "Lines of at most 100 characters and cells of at most 40, captions left out."
    for cell in code_cells(path):
        lines = tool.code_of(cell).splitlines()
        longest = max(map(len, lines), default=0)
        assert longest <= 100, f"cell {cell['id']} has a line of {longest} characters"
        assert sum(bool(o.strip()) for o in lines) <= 40, f"cell {cell['id']} is too long"


def chapter_cells(path):
    return [(c, tool.source(c)) for c in tool.load(path)["cells"] if tool.source(c).strip()]


def shows_picture(cell):
    texts = [output.get("data", {}) for output in cell.get("outputs", [])]
    html = "".join("".join(d.get("text/html", "")) for d in texts)
    images = any(mime.startswith("image/") for d in texts for mime in d)
    return images or re.search(r"<(img|svg|canvas)\b", html) is not None


on_chapters = pytest.mark.parametrize(
    "path", [p for p in CHAPTERS if p.name >= "01"], ids=lambda p: p.stem
)


@on_chapters
def test_the_picture_comes_first(path):
    "The first picture stands within 40% of the cells; the reader sees it before the machinery."
    cells = chapter_cells(path)
    first = next((i for i, (c, _) in enumerate(cells, 1) if shows_picture(c)), len(cells))
    assert first / len(cells) <= 0.4, f"{path.name}: first picture in cell {first} of {len(cells)}"


@on_chapters
def test_exercises_have_solutions_that_run(path):
    "Two to four exercises, and after the heading `Solutions` at least a code cell for two of them."
    texts = [text for _, text in chapter_cells(path)]
    exercises = re.findall(r"\*\*Exercise (\d+)\.\d+", "\n".join(texts))
    assert 2 <= len(exercises) <= 4 and set(exercises) == {str(int(path.name[:2]))}
    start = next(i for i, text in enumerate(texts) if re.search(r"^## Solutions", text, re.M))
    code = [c for c, _ in chapter_cells(path)[start:] if c["cell_type"] == "code"]
    assert len(code) >= 2 and all("code-fold" in tool.directives(c) for c in code)


# Nothing is skipped

DIRECTIVES = set(
    """default_exp export exports exporti hide echo output include warning code-fold code-summary
    fig-cap fig-alt fig-subcap fig-width fig-height layout-ncol layout column tbl-cap""".split()
)


@on_notebooks
def test_no_cell_is_skipped(path):
    nb = tool.load(path)
    faults = [
        "front matter with skip_exec or skip_showdoc"
        for c in nb["cells"]
        if re.search(r"^[\s-]*skip_(exec|showdoc)\s*:", tool.source(c), re.M)
    ]
    for cell in code_cells(path):
        text = tool.source(cell)
        faults += [
            f"cell {cell['id']}: `#| {d}` is not one of the directives in use"
            for d in tool.directives(cell).keys() - DIRECTIVES
        ]
        if "nbdev_export(" in text:
            faults.append(f"cell {cell['id']}: nbdev_test skips cells with nbdev_export()")
        if magic := re.search(r"^\s*%%(?!time\b|capture\b)\w+", text, re.M):
            faults.append(f"cell {cell['id']}: {magic[0].strip()} does not run the cell as Python")
        if cell["metadata"].get("language", "python") != "python":
            faults.append(f"cell {cell['id']}: not Python")
    none(faults)


def test_no_notebook_is_skipped():
    assert CFG.get("tst_flags", "notest").strip() == "", "tst_flags in settings.ini must be empty"
    none(
        [
            f"{p.relative_to(ROOT)}: skipped by nbdev_test"
            for p in (ROOT / "nbs").rglob("*")
            if ".ipynb_checkpoints" not in p.parts
            and (p.name == ".notest" or p.suffix == ".ipynb" and p not in NOTEBOOKS)
        ]
    )


def test_no_test_is_skipped():
    "A condition with a reason (`skipif`) is all that is allowed."
    skips = re.compile(
        r"mark\.(skip(?!if)|xfail)|pytest\.(skip|xfail|importorskip)\("
        r"|collect_[i]gnore|\.skipTest\("
    )
    none(
        [
            f"{p.name}: {m[0]}"
            for p in (ROOT / "tests").glob("*.py")
            for m in skips.finditer(p.read_text(encoding="utf-8"))
        ]
    )


# Committed notebooks


@on_notebooks
def test_outputs_are_clean_and_small(path):
    none(tool.output_faults(tool.load(path)))
    assert path.stat().st_size < 1.5e6, (
        f"{path.name} has {path.stat().st_size / 1e6:.2f} MB; at most 1.5"
    )


@on_notebooks
def test_title_stands_alone(path):
    first = tool.load(path)["cells"][0]
    assert first["cell_type"] == "markdown" and re.fullmatch(
        r"# [^\n]+(\n+(> [^\n]+\n?)+)?", tool.source(first).strip()
    ), f"{path.name}: the first cell holds the title and at most a quoted subtitle"


@on_notebooks
def test_figures_have_alt_text(path):
    faults = []
    for cell in code_cells(path):
        for output in cell["outputs"]:
            data = output.get("data", {})
            if any(mime.startswith("image/") for mime in data) and not tool.directives(cell).get(
                "fig-alt"
            ):
                faults.append(f"cell {cell['id']}: a figure without `#| fig-alt`")
            if any(
                not re.search(r"\balt=(?!\"\"|'')\S", tag)
                for tag in re.findall(r"<img\b[^>]*>", "".join(data.get("text/html", "")))
            ):
                faults.append(f"cell {cell['id']}: an <img> without alt")
    none(faults)


@on_notebooks
def test_imports_stand_in_their_own_cells(path):
    "The site's builder runs every cell that holds an import by itself."
    faults = []
    for cell in code_cells(path):
        if cell["id"] == tool.INSTALL:
            continue
        imports = lambda nodes: [n for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))]
        body = tree_of(cell).body
        found = (
            imports(body)
            if tool.directives(cell).keys() & {"export", "exports"}
            else [i for n in body for i in imports(ast.walk(n))]
        )
        if found and len(imports(body)) < len(body):
            faults.append(f"cell {cell['id']}: an import together with other code")
    none(faults)


@on_notebooks
def test_relative_links_resolve(path):
    links = [
        m
        for c in tool.load(path)["cells"]
        if c["cell_type"] == "markdown"
        for m in re.findall(
            r"\]\(([^)\s:#]+)(?:#[^)\s]*)?\)", re.sub(r"`[^`]*`|\$[^$]*\$", "", tool.source(c))
        )
    ]
    none(
        [
            f"{path.name} links to {o}, which is not there"
            for o in links
            if not (path.parent / o).exists()
        ]
    )


# Chapters and modules


def test_one_module_per_chapter():
    for path in CHAPTERS + [p for p in NOTEBOOKS if p.stem == "cli"]:
        names = [
            tool.directives(c)["default_exp"]
            for c in code_cells(path)
            if "default_exp" in tool.directives(c)
        ]
        assert names == [re.sub(r"^\d+_", "", path.stem)], f"{path.name} exports {names}"


def test_chapters_import_only_from_chapters_before():
    order, faults = list(MODULES), []
    for module, path in MODULES.items():
        for cell in code_cells(path):
            if cell["id"] == tool.INSTALL:
                continue
            for used in package_imports(tree_of(cell)):
                if used not in order:
                    faults.append(f"{path.name}: imports {PACKAGE}.{used}, which no chapter makes")
                elif order.index(used) >= order.index(module):
                    faults.append(f"{path.name}: imports {PACKAGE}.{used}, which comes no earlier")
    none(faults)


def test_no_pickles():
    pickles = re.compile(
        r"\b(torch\.(load|save)|(c|cloud)?pickle|joblib\.(dump|load)|allow_pickle\s*=\s*True)\b"
    )
    none(
        [
            f"{p.name}: {m[0]}"
            for p in (ROOT / PACKAGE).glob("*.py")
            for m in pickles.finditer(p.read_text(encoding="utf-8"))
        ]
    )


def bare_parameters(function):
    "Parameters without a comment on their line."
    text = textwrap.dedent(inspect.getsource(function))
    comments = {
        t.start[0]: t.line[: t.start[1]].rstrip()
        for t in tokenize.generate_tokens(io.StringIO(text).readline)
        if t.type == tokenize.COMMENT
    }
    a = ast.parse(text).body[0].args
    for arg in filter(None, [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]):
        if arg.arg != "self" and comments.get(arg.lineno, ":").endswith(":"):
            yield arg.arg  # a comment after the colon is about the result


def undocumented(label, thing):
    "What a public function or class leaves unsaid; methods need not repeat their class's words."
    if not thing.__doc__ and thing.__name__ != "__init__":
        yield f"{label}: no docstring"
    if inspect.isclass(thing):
        methods = {n: f for n, f in vars(thing).items() if inspect.isfunction(f)}
        yield from (
            f"{label}.{n}: no docstring"
            for n, f in methods.items()
            if n[0] != "_"
            and not f.__doc__
            and not any(hasattr(base, n) for base in thing.__bases__)
        )
        if "__init__" in methods and not is_dataclass(thing):
            yield from undocumented(label, methods["__init__"])
    elif inspect.isfunction(thing):
        yield from (f"{label}: parameter {p} has no comment" for p in bare_parameters(thing))


@on_modules
def test_public_names_are_documented(module):
    "Every public function and class says what it is, and every parameter has a comment beside it."
    loaded = importlib.import_module(f"{PACKAGE}.{module}")
    none(
        [
            fault
            for name in loaded.__all__
            if callable(getattr(loaded, name))
            for fault in undocumented(name, getattr(loaded, name))
        ]
    )


# Packaging


def pins():
    lines = [
        Requirement(o)
        for o in (ROOT / "constraints.txt").read_text().splitlines()
        if o and o[0] != "#"
    ]
    return {p.name.lower().replace("_", "-"): p for p in lines}


def test_every_requirement_is_pinned_within_its_range():
    faults = []
    for r in map(Requirement, (CFG["requirements"] + " " + CFG["dev_requirements"]).split()):
        pin = pins().get(r.name.lower())
        if pin is None:
            faults.append(f"{r.name} is not in constraints.txt")
        elif not r.specifier.contains(next(iter(pin.specifier)).version):
            faults.append(f"{pin} is outside {r}")
    none(faults)


def test_pins_are_exact():
    none(
        [
            f"{p}: not an exact, public version"
            for p in pins().values()
            if not re.fullmatch(r"==[^+*]+", str(p.specifier))
        ]
    )
    assert str(pins()["torch"].specifier) == "==2.13.0"


def test_versions_agree():
    project = (ROOT / "pyproject.toml").read_text()
    assert (
        f'name="{CFG["lib_name"]}"' in project
        and f'requires-python=">={CFG["min_python"]}"' in project
    )
    assert f"\n## {CFG['version']}\n" in (ROOT / "CHANGELOG.md").read_text(), (
        "CHANGELOG.md does not name the version in settings.ini"
    )
    assert importlib.import_module(PACKAGE).__version__ == CFG["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (\S+)$", citation, re.M)[1] == CFG["version"]


INSTALLED_AS = dict(sklearn="scikit-learn", PIL="pillow", yaml="pyyaml")
on_folders = pytest.mark.parametrize(
    "folders, fields",
    [([PACKAGE], ["requirements"]), (["tests", "tools"], ["requirements", "dev_requirements"])],
)


@on_folders
def test_every_import_is_a_requirement(folders, fields):
    "Nothing is used that comes only because something else needs it today."
    declared = {Requirement(o).name for field in fields for o in CFG[field].split()}
    files = [p for folder in folders for p in (ROOT / folder).glob("*.py")]
    names = set()
    for node in [n for p in files for n in ast.walk(ast.parse(p.read_text("utf-8")))]:
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    own = {PACKAGE} | {p.stem for f in ("tests", "tools") for p in (ROOT / f).glob("*.py")}
    others = {name.split(".")[0] for name in names} - own - sys.stdlib_module_names
    none(sorted(o for o in others if INSTALLED_AS.get(o, o) not in declared))


def test_setup_has_no_pkg_resources():
    assert "pkg_resources" not in (ROOT / "setup.py").read_text()


# The Colab copies


def test_copies_are_plain():
    faults = []
    for path in CHAPTERS:
        copy = tool.load(ROOT / tool.COPIES / path.name)
        code = [c for c in copy["cells"] if c["cell_type"] == "code"]
        if code[0]["id"] != tool.INSTALL:
            faults.append(f"{path.name}: the first code cell does not install")
        if any(c["outputs"] for c in code):
            faults.append(f"{path.name}: has outputs")
        faults += [
            f"{path.name}: {line}"
            for c in code
            for line in tool.source(c).splitlines()
            if tool.DIRECTIVE.match(line) or tool.NBDEV_LINE.match(line)
        ]
    none(faults)


# What editors leave in notebooks

WIDGETS = {"application/vnd.jupyter.widget-state+json": {"9f": {"model_name": "HTMLModel"}}}
OTHERS = dict(name="conda-env-mine-py", display_name="mine", language="python")
LEFT = {
    "widgets without their state": dict(widgets=WIDGETS),  # GitHub and nbconvert refuse it
    "widgets": dict(widgets={"application/vnd.jupyter.widget-state+json": dict(state={})}),
    "Colab": dict(colab=dict(provenance=[]), accelerator="GPU", gpuClass="standard"),
    "another kernel": dict(kernelspec=OTHERS, language_info=dict(version="3.14")),
    "editors": dict(vscode=dict(interpreter=dict(hash="0")), toc=dict(base_numbering=1)),
}


@pytest.fixture
def two_notebooks(tmp_path):
    "A checkout of one chapter and a page."
    (tmp_path / "nbs").mkdir()
    for name in "settings.ini", "nbs/02_sde.ipynb", "nbs/slips.ipynb":
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def spoil(root, metadata, of_cells=lambda cell: cell):
    for path in tool.notebooks(root):
        nb = tool.load(path)
        nb["metadata"] |= metadata
        nb["cells"] = [of_cells(cell) for cell in nb["cells"]]
        tool.write(path, tool.dump(nb))


def assert_clean(root):
    "The notebooks are again those of this checkout, and the copy for Colab is as plain."
    tool.stamp(root)
    for path in tool.notebooks(root):
        assert path.read_bytes() == (ROOT / "nbs" / path.name).read_bytes()
    tool.colab(root)
    copy = tool.load(root / tool.COPIES / "02_sde.ipynb")
    assert copy["metadata"].keys() == {"kernelspec"}
    assert not any(c["metadata"] for c in copy["cells"])


@pytest.mark.parametrize("metadata", LEFT.values(), ids=LEFT)
def test_what_editors_leave_goes(two_notebooks, metadata):
    "`make sync` removes it, so `make check` names the file; nothing of it gets into the copies."
    spoil(two_notebooks, metadata)
    assert_clean(two_notebooks)


def test_a_chapter_saved_by_colab(two_notebooks):
    "It has the ids of cells in their metadata, beside who ran them and when."

    def of_colab(cell):
        about = dict(id=cell.pop("id"), colab=dict(height=17), executionInfo=dict(user_tz=0))
        return cell | dict(metadata=about)

    spoil(two_notebooks, LEFT["Colab"] | LEFT["widgets without their state"], of_colab)
    assert_clean(two_notebooks)


@on_notebooks
def test_cells_are_plain(path):
    "Ids that differ, and nothing beside source and outputs, such as a pasted picture."
    cells = tool.load(path)["cells"]
    ids = [c["id"] for c in cells]
    assert len({*ids}) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", i, re.A) for i in ids)
    kept = {"cell_type", "id", "metadata", "source", "execution_count", "outputs"}
    none([f"cell {c['id']}: {c.keys() - kept}" for c in cells if c.keys() - kept])


def test_outputs_that_only_a_kernel_can_show():
    view = {"application/vnd.jupyter.widget-view+json": dict(model_id="9f"), "text/plain": "bar"}
    output = dict(output_type="display_data", data=view, metadata={})
    nb = dict(cells=[tool.make_cell("code", "one", "") | dict(outputs=[output])])
    (fault,) = tool.output_faults(nb)
    assert fault == "cell one: application/vnd.jupyter.widget-view+json is not shown everywhere"


@pytest.mark.parametrize("value, text", [
    ('\'a "memory"\'', 'a "memory"'), (r'"a \"memory\""', 'a "memory"'), ("it's", "it's"),
    ("'it''s'", "it's"), ("p < 1: no", "p < 1: no"), ("true", "true"), ("", ""),
])
def test_options_of_cells_are_read_as_quarto_reads_them(value, text):
    cell = tool.make_cell("code", "one", f"#| fig-alt: {value}\n#| echo: false\n1")
    assert tool.directives(cell) == {"fig-alt": text, "echo": "false"}


# What the slow tests measure


@pytest.fixture
def gathering():
    "What writes tests/README.md."
    path = ROOT / "tests" / "slow" / "conftest.py"
    spec = importlib.util.spec_from_file_location("gathering", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_replaces_its_own_lines(gathering, tmp_path):
    readme = tmp_path / "README.md"
    before = "# Tests\n\n| a | b |\n\n## Measured\n\nWritten by tests.\n"
    readme.write_text(before)
    gathering.record(dict(load=dict(peak="3 MB", growth="0.1 MB"), faults=dict(kills=50)), readme)
    first = readme.read_text()
    gathering.record(dict(load=dict(peak="4 | 5 MB")), readme)
    line = f"| peak | 4 / 5 MB | {gathering.machine()} |"
    assert readme.read_text() == first.replace(f"| peak | 3 MB | {gathering.machine()} |", line)
    assert first.startswith(before + "\n### faults\n")
    assert gathering.lines_of(first).keys() == {"faults", "load"}
    gathering.record({}, readme)
    assert line in readme.read_text()


def test_report_of_the_mutants(gathering):
    outcomes = dict(sde=["caught"] * 3 + ["survived"], core=["caught", "excused"])
    faults = [dict(module=m, outcome=o) for m, all in outcomes.items() for o in all]
    figures = gathering.of_mutants(dict(seconds=130, faults=faults))["mutants"]
    assert figures["single faults caught, all modules"] == "4 of 5, 1 excused"
    assert figures["single faults caught, core"] == "1 of 1, 1 excused"
    assert figures["time"] == "2 minutes"


def test_commands_for_tests_exist():
    "Those that tests/README.md and the CI name."
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    flows = [*(ROOT / ".github" / "workflows").glob("*.yml"), ROOT / ".ci" / "run"]
    texts = [p.read_text("utf-8") for p in [ROOT / "tests" / "README.md", *flows]]
    used = {name for text in texts for name in re.findall(r"\bmake ([a-z]+)\b(?! [a-z])", text)}
    assert {"test", "slow", "mutants", "colab", "site"} <= used <= targets
