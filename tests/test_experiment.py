"""The whole experiment: what it refuses, what it writes, and that its numbers are true."""
import json
import math
import os
from unittest.mock import patch

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import refused
from matplotlib.image import imread
from PIL import Image
from scipy.special import logsumexp

from amtutorial import __version__, experiment
from amtutorial.data import circle_patterns
from amtutorial.experiment import draw_experiment, format_table, run_experiment, run_one
from amtutorial.landscape import compute_landscape
from amtutorial.likelihood import energy_error
from amtutorial.sampling import memory_shares
from amtutorial.sde import VESDETerms
from amtutorial.training import score_error, trained_model

FILES = ["exact_vs_learned.png", "landscapes_2d.png", "landscapes_3d.png", "samples.png"]
FAST = dict(quick=True, iterations=20, device="cpu", cache=False)


# Refusals


@pytest.fixture
def no_training(monkeypatch):
    "Whoever trains, fails."

    def fail(*args, **kwargs):
        raise AssertionError("training began")

    monkeypatch.setattr(experiment, "trained_model", fail)


BAD = [
    (dict(sizes=[]), "ValueError: sizes must name at least one number of memories"),
    (dict(sizes=[0]), "ValueError: each of sizes must be between 1 and 60,000 inclusive, not 0"),
    (dict(sizes=0), "ValueError: each of sizes must be between 1 and 60,000 inclusive, not 0"),
    (dict(sizes=[2, 70_000]), "ValueError: each of sizes must be between 1 and 60,000 inclusive"),
    (dict(sizes=[2.5]), "TypeError: each of sizes must be a whole number, not float 2.5"),
    (dict(sizes="29"), "TypeError: each of sizes must be a whole number, not str '2'"),
    (dict(sizes=[True]), "TypeError: each of sizes must be a whole number, not bool True"),
    (dict(seed=1.5), "TypeError: seed must be a whole number, not float 1.5"),
    (dict(seed=-1), "ValueError: seed must be between 0 and 4,294,967,295 inclusive, not -1"),
    (dict(sigma=0.0), "ValueError: sigma must be finite and above 0, not 0"),
    (dict(sigma="1"), "TypeError: sigma must be a number"),
    (dict(sigma=math.nan), "ValueError: sigma must be finite and above 0, not nan"),
    (dict(sigma=[1.0, 2.0]), "TypeError: sigma must be one number, not 2"),
    (dict(t=0.0), "ValueError: t must lie in (0, 1], not 0"),
    (dict(t=1.5), "ValueError: t must lie in (0, 1], not 1.5"),
    (dict(iterations=0), "ValueError: iterations must be at least 1, not 0"),
    (dict(iterations=1e3), "TypeError: iterations must be a whole number, not float 1000.0"),
    (dict(device="abacus"), "ValueError: device 'abacus' is not available here; available: cpu"),
]


@pytest.mark.parametrize("bad, message", BAD, ids=[str(b) for b, _ in BAD])
def test_refused_before_it_starts(bad, message, no_training, tmp_path):
    out = tmp_path / "out"
    said = refused(run_experiment, **dict(out=out) | bad)
    assert said.startswith(message) and "\n" not in said
    assert not out.exists()  # not even the folder was made


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_where_the_folder_should_be(below, no_training, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    said = refused(run_experiment, out=file / below)
    assert said.startswith(f"ValueError: the output folder {str(file / below)!r} cannot be written")
    assert said.endswith("; choose another") and file.read_text() == "mine"


def test_a_folder_that_cannot_be_written(no_training, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(experiment.tempfile, "TemporaryFile", full)
    assert "(No space left on device)" in refused(run_experiment, out=tmp_path)


# What is written


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    "A short experiment: its folder, its result, and the style of figures before and after."
    out = tmp_path_factory.mktemp("experiment") / "new" / "folder"
    style = dict(plt.rcParams), matplotlib.get_backend(), plt.get_fignums()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    result = run_experiment([2, 101, 2], sigma=2.0, t=0.3, seed=5, out=out, **FAST)
    after = dict(plt.rcParams), matplotlib.get_backend(), plt.get_fignums()
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    return out, result, style, after


def test_files(written):
    out, _, _, _ = written
    assert sorted(p.name for p in out.iterdir()) == sorted([*FILES, "metrics.json"])
    for name in FILES:
        assert imread(out / name).std() > 0.05  # a picture, not a blank page
        with Image.open(out / name) as image:
            assert "K = 2, 101 at t = 0.3" in image.info["Description"]


def test_the_record_is_the_result(written):
    out, result, _, _ = written
    assert json.loads((out / "metrics.json").read_text()) == result
    assert result["config"] == dict(
        sizes=[2, 101], sigma=2.0, t=0.3, iterations=20, seed=5, device="cpu",
        cache=False, quick=True,
    )
    assert result["versions"]["amtutorial"] == __version__
    assert result["versions"]["torch"] == torch.__version__
    assert list(result["metrics"]) == ["2", "101"]  # what is asked for twice is done once


def test_seconds(written):
    _, result, _, _ = written
    parts = [s for m in result["metrics"].values() for s in m["seconds"].values()]
    assert len(parts) == 6 and min(parts) >= 0
    assert sum(parts) + result["seconds"]["draw"] <= result["seconds"]["total"]


def test_the_style_is_left_as_it_was(written):
    *_, before, after = written
    assert before == after


def test_numbers_are_finite(written):
    _, result, _, _ = written
    for m in result["metrics"].values():
        numbers = [v for k, v in m.items() if k not in ("seconds", "minima", "minima_exact")]
        assert np.isfinite(numbers).all()
    assert result["metrics"]["101"]["minima"] is None is result["metrics"]["101"]["minima_exact"]
    assert result["metrics"]["2"]["minima_exact"] in (1, 2)


def test_the_table(written):
    _, result, _, _ = written
    lines = format_table(result).splitlines()
    assert lines[0].split() == "K = 2 K = 101".split()
    rows = {line[:26].strip(): line[26:].split() for line in lines[1:-1]}
    assert rows["score error"] == [f"{m['score_error']:.1e}" for m in result["metrics"].values()]
    assert rows["energy minima, exact"][1] == "-" and len(rows) == 11
    assert len({len(line) for line in lines[:-1]}) == 1  # one width
    assert lines[-1] == f"seconds in all: {result['seconds']['total']:.1f}"


def test_the_table_separates_thousands():
    one = dict(
        score_error=0.1, energy_error=0.2, clusters=3, minima=None, minima_exact=None,
        total_variation=0.3, sampling_floor=0.2, distance=0.1,
        seconds=dict(train=1, sample=2, energy=3),
    )
    text = format_table(dict(metrics={"60000": one}, seconds=dict(total=7)))
    assert "K = 60,000" in text and "None" not in text


def test_a_second_run_replaces_the_first(written):
    out, result, _, _ = written
    again = run_experiment(2, sigma=2.0, t=0.3, seed=5, out=str(out), **FAST)
    assert sorted(p.name for p in out.iterdir()) == sorted([*FILES, "metrics.json"])
    record = json.loads((out / "metrics.json").read_text())
    assert record == again and list(record["metrics"]) == ["2"]
    strip = lambda m: {k: v for k, v in m.items() if k != "seconds"}
    assert strip(again["metrics"]["2"]) == strip(result["metrics"]["2"])  # the same seed
    (out / "metrics.json").write_text(json.dumps(result, indent=1) + "\n")


def test_figures_by_name(written):
    few = run_one(2, num_samples=50, resolution=12, iterations=1, device="cpu", cache=False)
    many = run_one(101, num_samples=50, resolution=12, iterations=1, device="cpu", cache=False)
    drawn = draw_experiment(*zip(*[(x, record) for _, x, record in (few, many)]))
    assert sorted(f"{name}.png" for name in drawn) == FILES
    flat = drawn["landscapes_2d"][0]
    assert [ax.get_title() for ax in flat.axes[:2]] == ["K = 2", "K = 101"]
    maps = [c for ax in flat.axes[:2] for c in ax.collections if c.get_zorder() == 0]
    assert [c.get_clim() for c in maps] == [(0, 8), (0, 8)]  # one scale
    samples = drawn["samples"][0].axes[0].collections[-1].get_offsets()
    np.testing.assert_allclose(samples, few[1])
    plt.close("all")


# Options


def test_quick_and_iterations(monkeypatch, tmp_path):
    "How many steps, samples and grid points are asked for."
    asked = []

    def one(K, **options):
        asked.append((K, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run_one", one)
    for options in ({}, dict(quick=True), dict(quick=True, iterations=7), dict(iterations=5)):
        with pytest.raises(KeyboardInterrupt):
            run_experiment([3], seed=4, out=tmp_path, device="cpu", **options)
    assert [o["iterations"] for _, o in asked] == [1000, 200, 7, 5]
    assert [o.get("num_samples") for _, o in asked] == [None, 500, 500, None]
    assert [o.get("resolution") for _, o in asked] == [None, 50, 50, None]
    assert all(o["seed"] == 4 and o["cache"] and o["device"] == "cpu" for _, o in asked)
    assert not list(tmp_path.iterdir())  # nothing half-finished


def test_the_cache_is_used_when_wanted(monkeypatch, tmp_path):
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(tmp_path / "kept"))
    options = dict(num_samples=20, resolution=10, iterations=2, device="cpu")
    run_one(2, cache=False, **options)
    assert not (tmp_path / "kept").exists()
    first, second = (run_one(2, **options)[0] for _ in range(2))
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 1
    assert first["score_error"] == second["score_error"]


def test_seeds_decide():
    options = dict(num_samples=50, resolution=10, iterations=2, device="cpu", cache=False)
    (a, x, r), (b, y, _), (c, z, q) = (run_one(3, seed=s, **options) for s in (1, 1, 2))
    assert torch.equal(x, y) and a["score_error"] == b["score_error"]
    assert not torch.equal(x, z) and a["score_error"] != c["score_error"]
    assert torch.equal(r.patterns, circle_patterns(3, 1))
    assert not torch.equal(r.patterns, q.patterns)


# The chain, against the exact answer, with nothing at its default


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "Four memories of another draw at half the noise, in a cache of their own."
    with patch.dict(os.environ, AMTUTORIAL_CACHE=str(tmp_path_factory.mktemp("kept"))):
        yield trained_model(circle_patterns(4, 3), 0.5, seed=3, device="cpu")


@pytest.fixture(scope="module")
def other(model):
    "What `run_one` makes of them, at another time."
    return run_one(4, 0.5, 0.3, seed=3, num_samples=800, resolution=60, device="cpu")


def exact_energy(X, Y, xi, sigma, t):
    "Energy of noised memories in nats above its minimum on the grid, in double precision."
    points = np.stack([X, Y], -1).astype(float)
    distance2 = np.square(points[..., None, :] - np.asarray(xi, float)).sum(-1)
    energy = -logsumexp(-distance2 / (2 * sigma**2 * t), axis=-1)
    return energy - energy.min()


def test_exact_energy_of_the_record(other):
    _, _, r = other
    wanted = exact_energy(r.X, r.Y, circle_patterns(4, 3), 0.5, 0.3)
    np.testing.assert_allclose(r.exact, wanted, atol=2e-4)  # of up to 30 nats, in single precision


def test_learned_energy(other):
    m, _, r = other
    wanted = torch.tensor(exact_energy(r.X, r.Y, circle_patterns(4, 3), 0.5, 0.3))
    assert m["energy_error"] == pytest.approx(energy_error(r.learned, wanted.float()), rel=1e-3)
    assert m["energy_error"] < 0.3  # the published networks have 0.7 to 1.0


def test_minima(other):
    m, _, r = other
    assert m["minima"] == m["minima_exact"] >= 2
    for at in r.exact_minima:
        assert (r.minima - at).norm(dim=1).min() < 0.02


def test_samples(other):
    m, x, r = other
    shares = memory_shares(x, circle_patterns(4, 3))
    assert x.shape == (800, 2) and shares["p_value"] > 1e-3
    assert m["total_variation"] == shares["total_variation"] and m["clusters"] == 4
    assert m["sampling_floor"] == shares["floor"] and m["distance"] == shares["distance"] < 0.01


def test_score(other, model):
    m, _, _ = other
    assert m["score_error"] < 0.005  # the answer zero has over one
    assert m["score_error"] == score_error(model, circle_patterns(4, 3), 0.5)


def test_another_window(other, model):
    "A map of another size and spacing, of the same network: what both show is the same."
    _, _, r = other
    xi, sde = circle_patterns(4, 3), VESDETerms(0.5)
    wide = compute_landscape(model, sde, xi, 0.3, resolution=33, bound=2.4)
    wanted = exact_energy(wide.X, wide.Y, xi, 0.5, 0.3)
    np.testing.assert_allclose(wide.exact, wanted, atol=5e-4)
    assert wide.X.max() == wide.Y.max() == pytest.approx(2.4) and wide.error < 0.3
    assert len(wide.exact_minima) == len(r.exact_minima)


def test_only_the_variance_counts(other):
    "σ = 0.5 at t = 0.3 is σ = 1 at t = 0.075."
    _, _, r = other
    sde, xi = VESDETerms(1.0), circle_patterns(4, 3)
    zero = lambda x, t: 0 * x
    twin = compute_landscape(zero, sde, xi, 0.075, resolution=60)
    np.testing.assert_allclose(twin.exact, r.exact, atol=2e-4)


def test_one_memory():
    "One Gaussian: a single minimum, a single cluster, and every share right."
    options = dict(iterations=300, num_samples=100, resolution=30, device="cpu", cache=False)
    m, x, r = run_one(1, **options)
    assert m["minima"] == m["minima_exact"] == m["clusters"] == 1 and m["total_variation"] == 0
    assert m["energy_error"] < 0.02 and (x - r.patterns).norm(dim=1).max() < 0.05


def test_minima_that_meet_count_once():
    "At small t the learned map has ripples far from all memories; they drain to the same minima."
    options = dict(iterations=1000, num_samples=100, device="cpu", cache=False)
    m, _, r = run_one(9, t=0.02, **options)
    assert m["minima"] == m["minima_exact"] == 5


# Nothing is shown twice, and nothing in another's place


def test_each_row_of_the_table_is_its_own():
    one = dict(
        score_error=0.25, energy_error=0.125, clusters=3, minima=4, minima_exact=5,
        distance=0.0625, total_variation=0.375, sampling_floor=0.625,
        seconds=dict(train=11, sample=12, energy=13),
    )
    lines = format_table(dict(metrics={"7": one}, seconds=dict(total=17))).splitlines()
    cells = [line.split()[-1] for line in lines]
    wanted = "7 2.5e-01 0.125 3 4 5 0.0625 0.375 0.625 11.0 12.0 13.0 17.0"
    assert cells == wanted.split()


def test_learned_and_exact_minima_are_counted_apart(monkeypatch):
    "A score that vanishes has other minima than the memories."
    monkeypatch.setattr(experiment, "trained_model", lambda *_, **__: lambda x, t: 0 * x)
    options = dict(num_samples=20, resolution=25, device="cpu")
    m, _, record = run_one(5, 0.5, 0.1, **options)
    assert m["minima"] == len(record.minima) != len(record.exact_minima) == m["minima_exact"]


def test_each_figure_is_what_its_name_says():
    few = run_one(2, num_samples=150, resolution=12, iterations=1, device="cpu", cache=False)
    drawn = draw_experiment([few[1]], [few[2]])
    titles = {name: [ax.get_title() for ax in fig.axes] for name, (fig, _) in drawn.items()}
    assert titles["exact_vs_learned"][:3] == ["exact", "learned", "learned - exact"]
    assert drawn["landscapes_3d"][0].axes[0].name == "3d"
    for name in "landscapes_2d", "samples":
        shown = {c.get_label(): c for c in drawn[name][0].axes[0].collections}
        np.testing.assert_allclose(shown["samples"].get_offsets(), few[1])
    plt.close("all")
