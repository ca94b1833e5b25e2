"""Bad input, from a table: one line that names the argument, what came and what is accepted."""

import math
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from helpers import none, refused

from amtutorial import (
    circle,
    cli,
    core,
    data,
    decision,
    digits,
    experiment,
    hopfield,
    inside,
    landscape,
    likelihood,
    mechanisms,
    minima,
    retrieval,
    sampling,
    scorenet,
    sde,
    sweeps,
    training,
    transition,
)

X, XI = torch.tensor([[0.5, 0.0], [0.0, 0.3]]), data.circle_patterns(3)
SDE, GRID = sde.VESDETerms(1.0), torch.ones(3, 3)
STD, IMAGES = SDE.marginal_prob_std, torch.linspace(-1, 1, 36).reshape(4, 9)


def score(x, t):
    return -x


# Values that are never right, with the words that say what came

NUMBERS = {
    "no number": ("cold", "'cold'"),
    "nothing": (None, "None"),
    "truth": (True, "True"),
    "complex": (1j, "1j"),
    "none at all": ([], "[]"),
    "zero": (0, "not 0"),
    "negative": (-1.5, "-1.5"),
    "NaN": (math.nan, "nan"),
    "infinite": (math.inf, "inf"),
}
NUMBER = NUMBERS | {"several": ([0.1, 0.2], "not 2")}
TIMES = NUMBERS | {"above one": (1.5, "1.5"), "one above": (torch.tensor([0.5, 2.0]), "0.5 to 2")}
TIME = NUMBER | {"above one": (1.5, "1.5")}
COUNT = {
    "no number": ("nine", "'nine'"),
    "nothing": (None, "None"),
    "truth": (True, "True"),
    "fraction": (2.5, "2.5"),
    "several": (np.array([1, 2]), "array([1, 2])"),
    "zero": (0, "not 0"),
    "negative": (-3, "-3"),
}
OPTIONAL = {kind: bad for kind, bad in COUNT.items() if kind != "nothing"}
MAYBE = {kind: bad for kind, bad in NUMBER.items() if kind != "nothing"}
END = NUMBERS | {"several": ([0.1, 0.2], "[0.1, 0.2]"), "one": (1.0, "1.0")}
MAYBE_END = {kind: bad for kind, bad in END.items() if kind != "nothing"}
MANY = {k: bad for k, bad in COUNT.items() if k not in ("nothing", "several")}
MANY["none"] = [], "not 0"
SEED = {kind: bad for kind, bad in COUNT.items() if kind != "zero"} | {
    "too large": (2**32, "4,294,967,296")
}
POINTS = {
    "text": ("circle", "not str"),
    "nothing": (None, "not NoneType"),
    "dict": ({"x": [1.0]}, "not dict"),
    "texts": ([["a", "b"]], "not list"),
    "ragged": ([[1.0, 2.0], [3.0]], "not list"),
    "masked": (np.ma.masked_array([[1.0, 2.0]], [[0, 1]]), "masked"),
    "truths": (torch.ones(3, 2) > 0, "torch.bool"),
    "complex": (torch.ones(3, 2) * 1j, "torch.complex64"),
    "no values": (torch.ones(3, 2, device="meta"), "not Tensor"),
    "number": (1.0, "()"),
    "empty": (torch.ones(0, 2), "(0, 2)"),
    "NaN": ([[math.nan, 0.0]], "1 of its 2 values are NaN"),
    "infinite": ([[math.inf, -math.inf]], "2 of its 2 values are NaN or infinite"),
}
BATCH = POINTS | {"too many axes": (torch.ones(2, 2, 2), "(2, 2, 2)")}
PLANE = BATCH | {"three coordinates": (torch.ones(3, 3), "(3, 3)")}
DEVICE = {"unknown": ("abacus", "'abacus'"), "not there": ("cuda:99", "'cuda:99'")}

# For each function a call that is right, and for each of its arguments what is not

TABLE = [
    (core.check_count, dict(n=3, name="K"), dict(n=COUNT)),
    (core.check_seed, dict(seed=3), dict(seed=SEED)),
    (core.separate_generator, dict(seed=3), dict(seed=SEED)),
    (core.check_positive, dict(value=1.0, name="t"), dict(value=NUMBERS)),
    (core.check_number, dict(value=1.0, name="t"), dict(value=NUMBER)),
    (core.as_points, dict(x=X), dict(x=POINTS)),
    (core.as_patterns, dict(patterns=XI), dict(patterns=BATCH)),
    (core.match_rows, dict(x=X, patterns=XI, value=torch.ones(2), name="t"), dict(
        x=POINTS, patterns=BATCH, value={"shape": (torch.ones(7), "(7,)")})),
    (core.pick_device, dict(device="cpu"), dict(device=DEVICE)),
    (core.device_of, dict(model=score, device="cpu"), dict(device=DEVICE)),
    (data.generate_circle_data, dict(num_samples=3, radius=1, seed=0), dict(
        num_samples=COUNT, radius=NUMBER, seed=SEED)),
    (data.CircleDataset, dict(num_samples=3, radius=1, seed=0), dict(
        num_samples=COUNT, radius=NUMBER, seed=SEED)),
    (data.create_subset, dict(dataset=X, sample_size=1, seed=0), dict(
        sample_size=COUNT | {"too large": (3, "not 3")}, seed=SEED)),
    (data.circle_patterns, dict(K=3, seed=9), dict(
        K=COUNT | {"too large": (70_000, "70,000")}, seed=SEED)),
    (data.plane_coordinates, dict(samples=X), dict(samples=POINTS)),
    (data.cartesian_to_polar, dict(samples=X), dict(samples=POINTS)),
    (data.merge_patterns, dict(patterns=XI, distance=0.1), dict(patterns=BATCH, distance=MAYBE)),
    (data.plane_grid, dict(resolution=3, bound=1.0), dict(resolution=COUNT, bound=NUMBER)),
    (sde.VESDETerms, dict(sigma_max=1.0, device="cpu"), dict(
        sigma_max=NUMBER | {"too large": (1e200, "inf")}, device=DEVICE)),
    (sde.VESDETerms(1.0).marginal_prob_std, dict(t=0.5), dict(t={"negative": (-1.0, "-1")})),
    (sampling.time_grid, dict(num_steps=3, eps=1e-3), dict(num_steps=COUNT, eps=END)),
    (sampling.memory_shares, dict(samples=X, patterns=XI), dict(samples=PLANE, patterns=BATCH)),
    (sampling.suited_grid, dict(unit=1.0), dict(unit=NUMBER, sigma=NUMBER)),
    (sampling.Euler_Maruyama_sampler, dict(
        score_model=score, sde=SDE, batch_size=2, num_steps=2, device="cpu", eps=0.1, patterns=XI),
        dict(batch_size=COUNT, num_steps=OPTIONAL, device=DEVICE, eps=MAYBE_END)),
    (retrieval.fixed_points, dict(step=lambda x: x, x=X, tol=1e-3, max_steps=2), dict(
        x=POINTS, tol=NUMBER, max_steps=COUNT)),
    (retrieval.retrieve, dict(x=X, patterns=XI, beta=2.0, tol=1e-3, max_steps=2), dict(
        x=POINTS, patterns=BATCH, beta=NUMBER, tol=NUMBER, max_steps=COUNT)),
    (circle.energy_am, dict(samples=X, beta=2.0), dict(samples=POINTS, beta=NUMBER)),
    (circle.score_am, dict(samples=X, beta=2.0), dict(samples=POINTS, beta=NUMBER)),
    (minima.grid_minima, dict(energy=GRID), dict(energy={
        "NaN": (GRID * math.nan, "(3, 3)"), "line": ([1.0, 2.0], "(2,)"), "empty": ([], "(0,)")})),
    (scorenet.FourierEmbedding, dict(embed_dim=4), dict(embed_dim={"odd": (3, "not 3")})),
    (scorenet.ScoreNet, dict(marginal_prob_std=STD), dict(
        input_dim=COUNT, num_layers=COUNT, hidden_dim=COUNT, embed_dim=COUNT)),
    (training.stratified_times, dict(n=3, eps=0.1), dict(
        n=COUNT, eps={kind: NUMBER[kind] for kind in ("zero", "negative", "NaN", "infinite")})),
    (training.train_loop, dict(
        train_loader=XI, vesde=SDE, iterations=1, lr=0.01, device="cpu", log_freq=1, seed=0),
        dict(train_loader=BATCH, iterations=COUNT, lr=NUMBER, device=DEVICE, log_freq=COUNT,
             times=COUNT, draws=COUNT, seed={k: v for k, v in SEED.items() if k != "nothing"})),
    (training.update_ema, dict(ema_model=torch.nn.Linear(1, 1), model=torch.nn.Linear(1, 1)), dict(
        decay={"one": (1.0, "1.0"), "negative": (-0.5, "-0.5"), "NaN": (math.nan, "nan")})),
    (training.score_error, dict(model=score, patterns=XI, sigma=1.0, n=2, seed=0, t=0.5), dict(
        patterns=BATCH, sigma=NUMBER, n=COUNT, seed=SEED,
        t={k: v for k, v in TIME.items() if k != "nothing"})),
    (training.trained_model, dict(patterns=XI, iterations=1, device="cpu", cache=False), dict(
        patterns=BATCH, sigma=NUMBER, iterations=COUNT, seed=SEED, device=DEVICE)),
    (likelihood.to_energy, dict(loglikelihood=X), dict(loglikelihood={
        "empty": (torch.zeros(0), "(0,)"), "number": (1.0, "float"), "text": ("x", "str")})),
    (likelihood.ode_likelihood_with_laplacian, dict(
        x=X, score_model=score, sde=SDE, device="cpu", eps=0.5, patterns=XI, seed=0), dict(
        x=BATCH, device=DEVICE, eps=TIME, probes=OPTIONAL, steps=OPTIONAL, seed=SEED)),
    (likelihood.energy_error, dict(energy=GRID, reference=GRID), dict(
        energy=POINTS, reference=POINTS, within=NUMBER)),
    (landscape.cluster_samples, dict(samples=X), dict(samples=BATCH, distance_threshold=NUMBER)),
    (landscape.compute_landscape, dict(
        score_model=score, sde=SDE, patterns=XI, t=0.5, resolution=3, device="cpu"), dict(
        patterns=PLANE, t=TIME, resolution=COUNT, bound=NUMBER, device=DEVICE)),
    (experiment.run_one, dict(K=2, iterations=1, cache=False, device="cpu"), dict(
        K=COUNT, sigma=NUMBER, t=TIME, iterations=COUNT, seed=SEED, device=DEVICE,
        num_samples=COUNT, resolution=COUNT)),
    (experiment.run_experiment, dict(out="results", sizes=[2], quick=True, cache=False), dict(
        sizes={k: COUNT[k] for k in ("truth", "zero", "negative")}, sigma=NUMBER, t=TIME,
        iterations=OPTIONAL, seed=SEED, device=DEVICE)),
    (transition.circle_recall, dict(samples=X, patterns=XI), dict(
        samples=PLANE, patterns=PLANE, width=NUMBER)),
    (transition.covered_share, dict(patterns=XI), dict(patterns=PLANE, width=NUMBER)),
    (transition.learned_dimension, dict(model=score, patterns=XI, n=2), dict(
        patterns=BATCH, sigma=NUMBER, n=COUNT, seed=SEED, t=TIME)),
    (transition.predicted_recall, dict(K=3, dimension=np.ones(11)), dict(
        K=NUMBER, width=NUMBER, dimension={"short": (np.ones(3), "(3,)"), "text": ("x", "str")})),
    (transition.sweep, dict(sizes=[2], folder="results", quick=True), dict(
        sizes={"one": (1, "not 1"), "fraction": ([2.5], "2.5"),
               "text": ("two", "'two'"), "none": ([], "not 0")},
        seeds=OPTIONAL, steps=OPTIONAL, jobs=COUNT)),
    (digits.digit_images, dict(), dict(seed=SEED, held_out=COUNT | {"all": (1797, "1,797")})),
    (digits.train_digits, dict(patterns=IMAGES, steps=1), dict(
        patterns=BATCH, steps=COUNT, seed=SEED,
        recipe={"unknown": ("quick", "'quick'"), "list": ([], "[]")})),
    (digits.sample_digits, dict(model=score, n=1, patterns=IMAGES), dict(
        n=COUNT, seed=SEED)),
    (digits.nearest_images, dict(samples=X, patterns=XI), dict(samples=BATCH, patterns=PLANE)),
    (digits.classify_samples, dict(samples=X, patterns=XI), dict(
        samples=BATCH, patterns=PLANE, delta_m=NUMBER, delta_s=NUMBER)),
    (digits.denoising_error, dict(model=score, images=X, draws=2), dict(
        images=BATCH, noise=NUMBER | {"too large": (9.0, "9")}, seed=SEED, draws=COUNT)),
    (digits.copying_report, dict(samples=X, train=XI, held_out=torch.randn(200, 2)), dict(
        samples=POINTS, train=POINTS, held_out=POINTS | {"few": (X, "2")}, seed=SEED,
        false_alarm=NUMBER | {"too large": (0.75, "0.75")})),
    (digits.sweep, dict(sizes=[16], folder="results", quick=True), dict(
        sizes=MANY | {"too large": (1025, "1,025")}, steps=MANY, seeds=OPTIONAL, jobs=COUNT)),
    (mechanisms.local_denoiser, dict(patterns=IMAGES, window=3), dict(
        patterns=BATCH, window=COUNT | {"even": (2, "2")}, sigma=NUMBER)),
    (mechanisms.sine_moments, dict(frequencies=XI, v=0.5), dict(
        frequencies=BATCH, v=NUMBER, points={k: v for k, v in PLANE.items() if k != "nothing"})),
    (mechanisms.feature_flow, dict(points=X, frequencies=XI, v=0.5, times=[1.0]), dict(
        frequencies=BATCH, v=NUMBER, points={k: v for k, v in PLANE.items() if k != "nothing"},
        times={"empty": ([], "[]"), "negative": ([-1.0], "-1"), "text": ("late", "str"),
               "NaN": ([math.nan], "nan"), "table": ([[1.0]], "[[1.0]]")})),
    (inside.jacobian_spectrum, dict(model=score, x=X, t=0.5), dict(
        x=BATCH, t=TIME, sigma=NUMBER)),
]
PLANE_GRID = torch.stack(data.plane_grid(3)[:2], -1)
TABLE += [
    (minima.find_minima, dict(energy=GRID, points=PLANE_GRID), dict(
        energy={"NaN": (GRID * math.nan, "(3, 3)"), "line": ([1.0, 2.0], "(2,)")},
        points=POINTS | {"shape": (X, "(2, 2)")}, min_barrier=NUMBER)),
    (hopfield.in_double, dict(f=lambda x, xi, b: x, x=X, patterns=XI, beta=2.0), dict(
        x=POINTS, patterns=BATCH, beta=NUMBERS)),
    (training.noisy_batch, dict(x=X, marginal_prob_std=STD, eps=0.1), dict(
        x={"one axis": (torch.ones(3), "(3,)")}, eps={"one": (1.0, "1.0"), "zero": (0, "not 0")})),
    (training.loss_fn, dict(model=score, x=X, marginal_prob_std=STD, eps=0.1), dict(
        x={"one axis": (torch.ones(3), "(3,)")}, eps={"one": (1.0, "1.0"), "zero": (0, "not 0")})),
    (sweeps.run_pieces, dict(piece=score, settings=[], folder="."), dict(jobs=COUNT)),
]
FALLING = {
    "list": ([1.0, 0.5], "list"), "one": (torch.ones(1), "[1.0]"),
    "rising": (torch.tensor([0.5, 1.0]), "[0.5, 1.0]"), "zero": (torch.tensor([1.0, 0.0]), "0.0]"),
    "NaN": (torch.tensor([1.0, math.nan]), "nan"),
    "above": (torch.tensor([2.0, 1.0]), "[2.0, 1.0]"),
}


def first_state(walk, x, times):
    return next(walk(score, SDE, x, times))


for walk in sampling.reverse_sde, sampling.probability_flow:
    good = dict(walk=walk, x=X, times=torch.tensor([1.0, 0.5]))
    TABLE.append((first_state, good, dict(times=FALLING)))
NOISED = dict(sigma=NUMBER | {"too large": (1e200, "inf")}, patterns=BATCH)
for f in sde.marginal_logp, sde.marginal_score, sde.posterior_weights, hopfield.diffusion_energy:
    TABLE.append((f, dict(x=X, t=0.5, patterns=XI), NOISED | dict(x=POINTS, t=TIMES)))
TABLE.append((sde.marginal_sample, dict(n=2, t=0.5, patterns=XI), NOISED | dict(n=COUNT, t=TIME)))
for f in hopfield.hopfield_energy, hopfield.dense_am_energy, retrieval.hopfield_update:
    good = dict(x=X, patterns=XI, beta=2.0)
    TABLE.append((f, good, dict(x=POINTS, patterns=BATCH, beta=NUMBERS)))
for f in decision.agreement, decision.open_nats, decision.effective_dimension:
    good = dict(t=0.5, patterns=XI, n=2)
    TABLE.append((f, good, NOISED | dict(t=TIME, n=COUNT, seed=SEED)))

ROWS = [
    pytest.param(f, good, name, bads, id=f"{f.__name__}-{name}")
    for f, good, wrong in TABLE
    for name, bads in wrong.items()
]


def state():
    "What is global and must not change. (How Matplotlib came to its backend does not count.)"
    look = {k: v for k, v in matplotlib.rcParams.items() if k != "backend_fallback"}
    return (
        torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
        matplotlib.get_backend(), look, torch.get_rng_state().tolist(),
        str(np.random.get_state()), sorted(map(str, Path().rglob("*"))),
    )


SLOW = "train_loop trained_model train_digits run_one run_experiment sweep run_pieces".split()
SLOW += ["jacobian_spectrum"]
NAMES = {"value": "t", "n": "(n|K)", "train_loader": "patterns"}  # as the message has them


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("empty")


@pytest.fixture
def nothing_changes(folder, monkeypatch):
    "Nothing is written, and what is global stays as it was."
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(folder / "cache"))
    before = state()
    yield
    assert state() == before


def faults(f, given, name, came):
    "What is wrong with the answer of `f` to a bad argument; nothing, if all is well."
    try:
        said = refused(lambda: f(**given))
    except Exception as e:  # accepted, or another error
        return f"{type(e).__name__}: {e}"
    line = "\n" not in said and len(said) < 200
    named = re.search(rf"\b{NAMES.get(name, name)}", said)
    wanted = came in said and re.search("must|available|fit", said)
    return None if line and named and wanted else said


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize("f, good, name, bads", ROWS)
def test_bad_input(f, good, name, bads):
    found = {kind: faults(f, good | {name: bad}, name, came) for kind, (bad, came) in bads.items()}
    none([f"{kind}: {fault}" for kind, fault in found.items() if fault])


@pytest.mark.parametrize("f, good", [pytest.param(f, good, id=f.__name__) for f, good, _ in TABLE])
def test_the_calls_of_the_table_are_right(f, good):
    "Else the refusals above might be of something else. (Those that take long are left out.)"
    if f.__name__ not in SLOW:
        f(**good)


def test_the_table_is_long():
    "Every kind of mistake, in over fifty functions."
    assert sum(len(row.values[3]) for row in ROWS) > 1500
    assert len({row.values[0] for row in ROWS}) > 50


LINES = """
--sizes two: --sizes must be whole numbers
--sizes 2,,9: --sizes must be whole numbers
--sizes 2.5: --sizes must be whole numbers
--sizes 0: sizes must be between 1 and 60,000 inclusive, not 0
--sizes 9,70000: sizes must be between 1 and 60,000 inclusive, not 70,000
--sigma 0: sigma must be finite and above 0, not 0
--sigma=-1: sigma must be finite and above 0, not -1
--sigma nan: sigma must be finite and above 0, not nan
--sigma inf: sigma must be finite and above 0, not inf
--sigma strong: argument --sigma: invalid float value: 'strong'
--t 0: t must lie in (0, 1], not 0
--t 1.5: t must lie in (0, 1], not 1.5
--t nan: t must lie in (0, 1], not nan
--t soon: argument --t: invalid float value: 'soon'
--iterations 0: iterations must be at least 1, not 0
--iterations 2.5: argument --iterations: invalid int value: '2.5'
--seed=-1: seed must be between 0 and 4,294,967,295 inclusive, not -1
--seed 4294967296: seed must be between 0 and 4,294,967,295 inclusive, not 4,294,967,296
--seed dice: argument --seed: invalid int value: 'dice'
--device abacus: device 'abacus' is not available here; available: cpu
--device cuda:99: device 'cuda:99' is not available here; available: cpu
--depth 3: unrecognized arguments: --depth 3
transitions: unrecognized arguments: transitions
--sizes: argument --sizes: expected one argument
transition --sizes 1: sizes must be between 2 and 60,000 inclusive, not 1
transition --sizes two: --sizes must be whole numbers separated by commas, not two
transition --seeds 0: seeds must be at least 1, not 0
transition --seeds many: argument --seeds: invalid int value: 'many'
transition --steps 3: steps must be at least 4, not 3
transition --steps 20,30: --steps of the transition must be one number, not 20,30
transition --jobs 0: jobs must be at least 1, not 0
transition --sigma 1: unrecognized arguments: --sigma 1
digits --sizes 0: sizes must be between 1 and 1,024 inclusive, not 0
digits --sizes 1025: sizes must be between 1 and 1,024 inclusive, not 1,025
digits --seeds 0: seeds must be at least 1, not 0
digits --steps 0: steps must be at least 1, not 0
digits --steps 10,x: --steps must be whole numbers separated by commas, not 10,x
digits --jobs=-2: jobs must be at least 1, not -2
"""


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize("line", LINES.strip().splitlines())
def test_bad_command_lines(line, capsys):
    words, message = line.split(": ", 1)
    try:
        status = cli.main(words.split())
    except SystemExit as e:  # what argparse refuses
        status = e.code
    said = capsys.readouterr()
    assert status == 2 and message in said.err.splitlines()[-1] and not said.out
    assert "Traceback" not in said.err
