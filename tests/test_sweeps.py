"""The engine of sweeps: pieces are computed once, kept as they finish, and told apart by code."""
import compileall
import json
import os
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path
import numpy as np
import pytest
import torch
from amtutorial import sweeps
from amtutorial.sweeps import run_pieces
from amtutorial.transition import WIDTHS, circle_piece

CALLS, FACTOR = deque(), 2 # a list would count as a constant of the piece

def doubled(n, **_):
    "A piece: counts its calls."
    CALLS.append(n)
    if n == 13:
        raise ArithmeticError("thirteen")
    return dict(result=_scaled(n))

def _scaled(n):
    return FACTOR * n

def numbers(pieces):
    return [piece["numbers"]["result"] for piece in pieces]

def test_pieces_are_computed_once_and_in_order(tmp_path):
    CALLS.clear()
    settings = [dict(n=n) for n in (3, 1, 2, 1)]
    assert numbers(run_pieces(doubled, settings, tmp_path, 1)) == [6, 2, 4, 2]
    assert sorted(CALLS) == [1, 2, 3]
    again = run_pieces(doubled, settings[::-1], tmp_path, 1)
    assert numbers(again) == [2, 4, 2, 6] and len(CALLS) == 3
    assert [piece["settings"] for piece in again] == settings[::-1]
    assert len(list((tmp_path / "pieces").iterdir())) == 3
    assert run_pieces(doubled, [], tmp_path, 1) == []

def test_what_is_finished_is_kept_when_a_piece_fails(tmp_path):
    CALLS.clear()
    settings = [dict(n=n) for n in (1, 2, 13, 4)]
    with pytest.raises(ArithmeticError):
        run_pieces(doubled, settings, tmp_path, 1)
    done = len(list((tmp_path / "pieces").glob("*.json")))
    assert done == 2 and list(CALLS) == [1, 2, 13]
    run_pieces(doubled, [settings[0], settings[1], settings[3]], tmp_path, 1)
    assert list(CALLS) == [1, 2, 13, 4]

def test_other_settings_and_other_code_are_other_pieces(tmp_path, monkeypatch):
    CALLS.clear()
    run_pieces(doubled, [dict(n=1)], tmp_path, 1)
    run_pieces(doubled, [dict(n=1, also=2.5)], tmp_path, 1)
    assert list(CALLS) == [1, 1]
    monkeypatch.setitem(globals(), "FACTOR", 3) # a constant of a function that the piece calls
    assert numbers(run_pieces(doubled, [dict(n=1)], tmp_path, 1)) == [3]
    source = sweeps._source(circle_piece)
    assert all(f"def {name}(" in source for name in ("circle_recall", "_gaps", "covered_share"))
    assert str(WIDTHS) in source and "def sweep" not in source

def test_a_piece_that_is_not_whole_is_computed_again(tmp_path):
    "Cut at every byte; empty; something else; a pipe, which must not be waited for."
    CALLS.clear()
    good = run_pieces(doubled, [dict(n=1)], tmp_path, 1)
    (path,) = (tmp_path / "pieces").iterdir()
    data = path.read_bytes()
    bad = [data[:n] for n in range(len(data))] + [b"null", b"{}", b"[1]", b"\0" * 99, b"[" * 10**5]
    for i, text in enumerate(bad, 2):
        path.write_bytes(text)
        assert run_pieces(doubled, [dict(n=1)], tmp_path, 1) == good and len(CALLS) == i
        assert path.read_bytes() == data
    path.unlink()
    os.mkfifo(path)
    assert run_pieces(doubled, [dict(n=1)], tmp_path, 1) == good and path.read_bytes() == data
    assert list((tmp_path / "pieces").iterdir()) == [path]

def test_numbers_of_numpy_and_pytorch(tmp_path):
    "In settings and results; what is computed, and what is read later, are the same."
    def piece(n, a):
        CALLS.append(n)
        yes, many = np.bool_(True), np.arange(2)
        return dict(whole=np.int64(n), half=torch.tensor(0.5), many=many, yes=yes)
    CALLS.clear()
    wanted = dict(whole=2, half=0.5, many=[0, 1], yes=True)
    for n, a in (2, [1]), (np.int64(2), np.array([1])), (2, torch.tensor([1])):
        (found,) = run_pieces(piece, [dict(n=n, a=a)], tmp_path, 1)
        assert found == dict(settings=dict(n=2, a=[1]), numbers=wanted) and len(CALLS) == 1
    table = sweeps.keep_table(dict(n=np.int64(2)), [found], tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text())["pieces"] == table["pieces"]

def test_a_full_disk_loses_nothing_that_was_finished(tmp_path, monkeypatch):
    "It is told, and nothing half-written stays."
    CALLS.clear()
    run_pieces(doubled, [dict(n=1)], tmp_path, 1)
    def full(path, data):
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as m, pytest.raises(OSError, match="No space left"):
        m.setattr(Path, "write_bytes", full)
        run_pieces(doubled, [dict(n=1), dict(n=2)], tmp_path, 1)
    assert numbers(run_pieces(doubled, [dict(n=1), dict(n=2)], tmp_path, 1)) == [2, 4]
    assert list(CALLS) == [1, 2, 2] and len(list((tmp_path / "pieces").iterdir())) == 2

def test_without_any_source(tmp_path):
    "A package of compiled files alone: the same code has the same name, in every process."
    package = tmp_path / "amtutorial"
    shutil.copytree(Path(sweeps.__file__).parent, package)
    assert compileall.compile_dir(package, legacy=True, quiet=1)
    for source in package.glob("*.py"):
        source.unlink()
    script = """
from amtutorial import sweeps, transition
from amtutorial.sweeps import _source, run_pieces
print(sweeps.__file__, _source(transition.circle_piece))
print(run_pieces(transition.covered_share, [dict(patterns=[[1., 0.]])], "out", 1))
"""
    said = []
    for seed in "12":
        env = os.environ | dict(PYTHONHASHSEED=seed)
        command, how = [sys.executable, "-c", script], dict(capture_output=True, text=True)
        done = subprocess.run(command, env=env, cwd=tmp_path, **how)
        assert not done.returncode, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1] and said[0].startswith(str(package))
    assert len(list((tmp_path / "out" / "pieces").iterdir())) == 1


def test_the_package_behind_a_piece_counts(tmp_path, monkeypatch):
    CALLS.clear()
    for behind in ("core",), ("sde",), ("core",):
        monkeypatch.setattr(sweeps, "BEHIND", behind)
        run_pieces(doubled, [dict(n=1)], tmp_path, 1)
    assert list(CALLS) == [1, 1]

def threads(n):
    return dict(result=torch.get_num_threads())

def test_a_piece_has_one_thread(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert numbers(run_pieces(threads, [dict(n=1)], tmp_path, 1)) == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

def test_what_is_kept_stays_as_it_is(tmp_path):
    "Two machines finish one piece: the first counts. One that does not see the folder is silent."
    path = tmp_path / "piece.json"
    first, second = (dict(settings={}, numbers=dict(result=n)) for n in (1, 2))
    sweeps._keep(path, first)
    sweeps._keep(path, second)
    sweeps._keep(tmp_path / "elsewhere" / "piece.json", second)
    assert json.loads(path.read_text()) == first and list(tmp_path.iterdir()) == [path]

def test_a_backend_that_gives_results_at_the_end(tmp_path, monkeypatch):
    def at_the_end(n_jobs, **options):
        if options:
            raise ValueError("return_as is not supported")
        return lambda work: [f(*args, **kwargs) for f, args, kwargs in work]
    monkeypatch.setattr(sweeps, "Parallel", at_the_end)
    assert numbers(run_pieces(doubled, [dict(n=n) for n in (3, 1)], tmp_path, 2)) == [6, 2]
