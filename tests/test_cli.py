"""The command: what it answers, what it writes, and how it says no."""
import gc
import importlib
import inspect
import json
import os
import subprocess
import sys
from unittest import mock

import matplotlib.pyplot as plt
import pytest
from distributed import LocalCluster
from joblib.parallel import get_active_backend

from amtutorial import cache, experiment, sweeps
from amtutorial.cli import main, parser

FAST = "--quick --iterations 5 --no-cache --device cpu".split()


def test_defaults_are_those_of_the_function(monkeypatch, capsys, tmp_path):
    "Every option reaches `run_experiment` under its own name; the defaults are the same."
    monkeypatch.chdir(tmp_path)
    asked, parameters = {}, inspect.signature(experiment.run_experiment).parameters

    def run(sizes, **options):
        asked.update(options, sizes=sizes)
        return dict(metrics={}, seconds=dict(total=0.0))

    monkeypatch.setattr(experiment, "run_experiment", run)
    assert main([]) == 0
    defaults = {name: p.default for name, p in parameters.items()}
    assert asked == defaults | dict(sizes=list(defaults["sizes"]))
    capsys.readouterr()
    line = "--sizes 4,30 --sigma .5 --t .3 --iterations 7 --seed 3 --device cpu --out x"
    assert main([*line.split(), "--no-cache", "--quick"]) == 0
    assert asked == dict(
        sizes=[4, 30], sigma=0.5, t=0.3, iterations=7, seed=3, device="cpu",
        out="x", cache=False, quick=True,
    )
    assert capsys.readouterr().out.endswith("Figures and metrics.json are in x.\n")


def test_help_names_every_option():
    text = parser().format_help()
    for name in "sizes sigma t iterations seed device out no-cache quick help".split():
        assert f"--{name}" in text
    assert "(default 2,9,1000)" in text and "%(" not in text


def run(*args, **env):
    "The command in a process of its own, as a user types it."
    env = os.environ | dict(TQDM_DISABLE="1", OMP_NUM_THREADS="1") | env
    command = [sys.executable, "-m", "amtutorial", *args]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_a_process_of_its_own(tmp_path):
    "With an interactive backend asked for where there is no screen."
    out, cache = tmp_path / "out", tmp_path / "cache"
    env = dict(AMTUTORIAL_CACHE=str(cache), MPLBACKEND="tkagg", DISPLAY="")
    done = run("--sizes", "3,2", *FAST, "--seed", "4", "--sigma", "2", "--out", str(out), **env)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].split() == "K = 3 K = 2".split()
    assert lines[-1] == f"Figures and metrics.json are in {out}."
    names = "exact_vs_learned landscapes_2d landscapes_3d samples".split()
    written = sorted(p.name for p in out.iterdir())
    assert written == sorted([*(f"{n}.png" for n in names), "metrics.json"])
    record = json.loads((out / "metrics.json").read_text())
    assert record["config"] == dict(
        sizes=[3, 2], sigma=2.0, t=0.15, iterations=5, seed=4, device="cpu",
        cache=False, quick=True,
    )
    assert experiment.format_table(record) == "\n".join(lines[:-1])
    assert not cache.exists()


def test_help_starts_quickly():
    "Nothing heavy is imported before there is work."
    script = "import sys, amtutorial.cli as c; c.parser().format_help(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert not {"torch", "matplotlib", "numpy", "scipy"} & set(done.stdout.split())
    assert run("--help").stdout.startswith("usage: amtutorial")


BAD = {
    "--sizes two": "--sizes must be whole numbers separated by commas, such as 2,9,1000",
    "--sizes 2;9": "--sizes must be whole numbers separated by commas, such as 2,9,1000",
    "--sizes 2,,9": "--sizes must be whole numbers separated by commas, such as 2,9,1000",
    "--sizes 2.5": "--sizes must be whole numbers separated by commas, such as 2,9,1000",
    "--sizes 0": "each of sizes must be between 1 and 60,000 inclusive, not 0",
    "--sizes 2,60001": "each of sizes must be between 1 and 60,000 inclusive, not 60,001",
    "--sigma -1": "sigma must be finite and above 0, not -1",
    "--sigma nan": "sigma must be finite and above 0, not nan",
    "--sigma inf": "sigma must be finite and above 0, not inf",
    "--t 2": "t must lie in (0, 1], not 2",
    "--t 0": "t must lie in (0, 1], not 0",
    "--seed -1": "seed must be between 0 and 4,294,967,295 inclusive, not -1",
    "--iterations 0": "iterations must be at least 1, not 0",
    "--device abacus": "device 'abacus' is not available here; available: cpu",
}


@pytest.mark.parametrize("line", BAD)
def test_refusals(line, tmp_path, capsys):
    "Status 2, one line, and nothing written."
    out = tmp_path / "out"
    assert main([*line.split(), "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"amtutorial: {BAD[line]}") and said.err.count("\n") == 1
    assert said.out == "" and not out.exists()


def test_a_folder_that_cannot_be(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    assert main(["--out", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("amtutorial: the output folder") and said.count("\n") == 1
    assert file.read_text() == "mine"


@pytest.mark.parametrize("line", ["--sigma big", "--seed 1.5", "--iterations many", "--colour red"])
def test_options_that_do_not_parse(line, capsys):
    "argparse answers with the usage and status 2."
    with pytest.raises(SystemExit) as e:
        main(line.split())
    assert e.value.code == 2 and "usage: amtutorial" in capsys.readouterr().err


def test_the_status_reaches_the_shell(tmp_path):
    done = run("--sizes", "0", "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


def test_options_of_the_sweeps_reach_their_functions(monkeypatch, capsys, tmp_path):
    "Sizes and steps are lists of numbers; the transition takes one number of steps."
    asked = {}

    def swept(*args):
        asked["args"] = args
        return "table"

    for name, steps in dict(transition=7, digits=[7, 9]).items():
        module = importlib.import_module(f"amtutorial.{name}")
        monkeypatch.setattr(module, "sweep", swept)
        monkeypatch.setattr(module, f"draw_{name}", lambda table: plt.figure())
        monkeypatch.setattr(module, f"format_{name}", lambda table: table + " printed")
        line = [name, "--sizes", "4,30", "--seeds", "2", "--jobs", "3", "--quick"]
        text = ",".join(map(str, steps if name == "digits" else [steps]))
        assert main([*line, "--steps", text, "--out", str(tmp_path)]) == 0
        assert asked["args"] == ([4, 30], 2, steps, 3, tmp_path, True)
        assert (tmp_path / f"{name}.png").exists()
        assert capsys.readouterr().out.startswith("table printed\n")
        assert main([name, "--out", str(tmp_path)]) == 0
        assert asked["args"] == (None, None, None, 2, tmp_path, False)
        capsys.readouterr()


@pytest.mark.parametrize("line, why", [
    ("transition --sizes two", "--sizes must be whole numbers separated by commas, not two"),
    ("transition --sizes 1", "each of sizes must be between 2 and 60,000 inclusive, not 1"),
    ("digits --steps 1,x", "--steps must be whole numbers separated by commas, not 1,x"),
    ("transition --steps 9,10", "--steps of the transition must be one number, not 9,10"),
    ("digits --sizes 2000", "each of sizes must be between 1 and 1,024 inclusive, not 2,000"),
    ("digits --jobs 0 --quick", "jobs must be at least 1, not 0"),
    ("transition --seeds 0", "seeds must be at least 1, not 0"),
    ("transition --steps 3", "steps must be at least 4, not 3"),
    ("digits --steps 5,0", "each of steps must be at least 1, not 0"),
    ("digits --backend abacus", "Invalid backend: abacus"),
    ("digits --scheduler here:1", "--scheduler here:1 needs --backend dask, not None"),
    ("digits --backend threading --out /dev/null/x", "")])
def test_sweeps_say_no(line, why, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweeps, "Parallel", None)  # nothing is computed
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"amtutorial: {why}") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert type(get_active_backend()[0]).__name__ == "LokyBackend"  # joblib's own, as before


def test_a_sweep_goes_on_where_it_was_and_on_a_cluster(tmp_path):
    "Two processes of Dask compute the pieces that are missing; the others are read."
    line = ["digits", "--sizes", "8", "--seeds", "1", "--quick", "--out", str(tmp_path)]
    assert run(*line, "--steps", "3", "--jobs", "1").returncode == 0
    first = {p: p.stat().st_mtime_ns for p in (tmp_path / "pieces").iterdir()}
    with mock.patch.dict(os.environ), LocalCluster( # which sets OMP_NUM_THREADS here
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        done = run(*line, "--steps", "3,5", "--backend", "dask", "--scheduler", address)
    assert done.returncode == 0, done.stderr
    later = {p: p.stat().st_mtime_ns for p in (tmp_path / "pieces").iterdir()}
    assert first.items() < later.items() and len(later) == len(first) + 1
    table = json.loads((tmp_path / "metrics.json").read_text())
    assert [p["settings"]["steps"] for p in table["pieces"]] == [0, 3, 5]


def stop(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("error", [RuntimeError("no home"), PermissionError(13, "Denied")])
def test_ctrl_c_where_there_is_no_cache(error, tmp_path, monkeypatch, capsys):
    def fail():
        raise error

    monkeypatch.setattr(cache, "cache_dir", fail)
    monkeypatch.setattr(experiment, "run_experiment", stop)
    assert main(["--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "amtutorial: stopped; nothing was kept\n"


def test_ctrl_c_in_a_notebook_leaves_its_objects_alone(tmp_path, monkeypatch):
    "Frozen objects are never collected; a process of our own may freeze them, it ends."
    monkeypatch.setattr(experiment, "run_experiment", stop)
    before = gc.get_freeze_count()
    assert main(["--out", str(tmp_path)]) == 130 and gc.get_freeze_count() == before
