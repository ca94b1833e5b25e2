"""The engine of sweeps: pieces are computed once, kept as they finish, and told apart by code."""
from collections import deque
import pytest
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
