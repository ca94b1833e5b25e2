"""The claims of settings.ini: its lowest versions, its highest, the next nbdev, a bare kernel.

Most tests make an environment of their own, so pip must reach an index. For Linux the ordinary one
has `torch` with several gigabytes of CUDA; with PIP_EXTRA_INDEX_URL set to
https://download.pytorch.org/whl/cpu pip takes the small build.
"""

import ast
import os
import re
import shutil
import subprocess
import venv

import pytest
from helpers import CFG, ROOT, call, none, tool
from jupyter_client.manager import start_new_kernel
from packaging.requirements import Requirement

# What tests of the library need; the others are about pages, style and the package's text.
TOOLS = "pytest pytest-xdist hypothesis mpmath sympy pandas distributed packaging pyyaml".split()
ELSEWHERE = "site", "explorer", "colab", "install", "frame"
FILES = [
    p.relative_to(ROOT)
    for p in sorted((ROOT / "tests").glob("test_*.py"))
    if p.stem.removeprefix("test_") not in ELSEWHERE
]


def requirements():
    "What the library needs, and what its tests need beside it."
    asked = [Requirement(text) for text in CFG["requirements"].split()]
    beside = [Requirement(text) for text in CFG["dev_requirements"].split()]
    return asked + [r for r in beside if r.name in TOOLS]


def lowest(requirement):
    (version,) = [s.version for s in requirement.specifier if s.operator in (">=", "==")]
    return f"{requirement.name}=={version}"


@pytest.fixture
def environment(tmp_path):
    "A function that makes an environment with these requirements and returns one that runs there."
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=True)

    def run(*args, **kwargs):
        env = os.environ | dict(
            PYTHONPATH=str(ROOT),
            PATH=f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            AMTUTORIAL_CACHE=str(tmp_path / "cache"),
            OMP_NUM_THREADS="1",
            TQDM_DISABLE="1",
        )
        command = [folder / "bin" / args[0], *args[1:]]
        done = subprocess.run(command, env=env, capture_output=True, text=True, **kwargs)
        assert not done.returncode, done.stdout[-5000:] + done.stderr[-3000:]
        return done.stdout

    def install(*names):
        run("python", "-m", "pip", "install", "-q", "--no-compile", *names)
        return run

    yield install
    shutil.rmtree(folder)  # gigabytes


def passed(run):
    "How many tests of the library pass there."
    said = run("python", "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", *FILES, cwd=ROOT)
    return int(re.search(r"(\d+) passed", said.splitlines()[-1])[1])


def versions(run):
    "The library's own requirements, as they are installed."
    names = [Requirement(text).name for text in CFG["requirements"].split()]
    code = f"from importlib.metadata import version as v; print(*map(v, {names}))"
    return ", ".join(map(" ".join, zip(names, run("python", "-c", code).split(), strict=True)))


def test_lowest_versions(environment, record_property):
    run = environment(*map(lowest, requirements()))
    record_property("figure:tests passed at the lowest versions", f"{passed(run):,}")
    record_property("figure:lowest versions", versions(run))


def test_highest_versions(environment, record_property):
    run = environment("--upgrade", *map(str, requirements()))
    record_property("figure:tests passed at the highest versions", f"{passed(run):,}")
    record_property("figure:highest versions", versions(run))


def code_of(path):
    "The syntax tree of a module without its docstring, where nbdev 3 puts a link."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = tree.body[ast.get_docstring(tree) is not None :]
    return ast.dump(tree)


def test_the_next_nbdev(environment, tmp_path, record_property):
    "nbdev 3 makes a [tool.nbdev] table from settings.ini, and from the notebooks the same modules."
    run = environment("nbdev>=3")
    for name in "nbs", CFG["lib_path"]:
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
    for name in "settings.ini", "_quarto.yml", "README.md":
        shutil.copy(ROOT / name, tmp_path)
    run("nbdev-migrate-config", cwd=tmp_path)
    assert "[tool.nbdev]" in (tmp_path / "pyproject.toml").read_text()
    (tmp_path / "settings.ini").unlink()
    modules = sorted(p.name for p in (ROOT / CFG["lib_path"]).glob("[!_]*.py"))
    for name in modules:
        (tmp_path / CFG["lib_path"] / name).unlink()
    run("nbdev-export", cwd=tmp_path)
    ours, theirs = ROOT / CFG["lib_path"], tmp_path / CFG["lib_path"]
    none([name for name in modules if code_of(ours / name) != code_of(theirs / name)])
    assert (ours / "_modidx.py").read_text() == (theirs / "_modidx.py").read_text()
    version = run("python", "-c", "from importlib.metadata import version as v; print(v('nbdev'))")
    record_property(f"figure:modules that nbdev {version.strip()} writes alike", len(modules))


BAR = """
from amtutorial.training import train_loop
train_loop(circle_patterns(9), VESDETerms(1.), 3000, device="cpu");
"""


def test_a_kernel_without_ipywidgets(monkeypatch, record_property):
    "A chapter runs with its bars on, which are of text: nothing else is said on stderr."
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    manager, client = start_new_kernel(cwd=ROOT / "nbs")
    said, faults = [], []

    def listen(message):
        if message["content"].get("name") == "stderr":
            said.append(message["content"]["text"])

    try:
        cells = tool.load(ROOT / "nbs" / "03_sampling.ipynb")["cells"]
        code = [tool.source(c) for c in cells if c["cell_type"] == "code"]
        for text in ["import sys; sys.modules['ipywidgets'] = None", *code, BAR]:
            reply = client.execute_interactive(text, output_hook=listen, allow_stdin=False)
            faults += reply["content"].get("traceback", [])
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    none(faults)
    lines = [line for text in said for line in re.split(r"[\r\n]", text) if line.strip()]
    assert any(line.startswith("training, K = 9:") for line in lines)
    none([line for line in lines if not re.match(r"[\w ,=]+: +\d+%\|", line)])
    record_property("figure:cells of a chapter run in a kernel without ipywidgets", len(code))


def test_what_make_test_runs(record_property):
    "No version, but a number that is asked for."
    line = re.search(r"^\t(.* -m pytest .*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    said = call("-m", "pytest", "--collect-only", *line.split("pytest ")[1].split(), cwd=ROOT)
    record_property("figure:tests in `make test`", f"{int(said.split()[-5]):,}")
    cells = [c for p in tool.notebooks(ROOT) for c in tool.load(p)["cells"]]
    code = sum(c["cell_type"] == "code" for c in cells)
    figure = f"{len(tool.notebooks(ROOT))}, {code:,}"
    record_property("figure:notebooks, and cells of code in them", figure)
