"""Arguments away from their defaults: what is random follows its seed and nothing else."""

import importlib
import inspect
import random
from functools import partial

import numpy as np
import pytest
import torch
from helpers import CFG, ROOT, none

from amtutorial import (
    core,
    data,
    decision,
    digits,
    experiment,
    likelihood,
    sampling,
    sde,
    training,
    transition,
)
from amtutorial.scorenet import ScoreNet

XI, SDE = data.circle_patterns(5), sde.VESDETerms(0.5)
STD, POINTS = SDE.marginal_prob_std, XI.repeat(2, 1)
sample = sampling.Euler_Maruyama_sampler
EXACT = partial(sde.marginal_score, patterns=XI, sigma=0.5)


def network(d=2):
    "A network whose weights are always the same."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ScoreNet(d, 2, 8, 4, STD, readout=True).requires_grad_(False)


def weights(model):
    return torch.cat([p.detach().ravel() for p in model.parameters()])


def walk(generator):
    times = sampling.time_grid(3, 0.01)
    return torch.stack(list(sampling.reverse_sde(EXACT, SDE, POINTS, times, generator))[1:-1])


def given(f, *args, **options):
    "A function of a seed, which hands a generator with that seed to `f`."
    return lambda seed: f(*args, generator=torch.Generator().manual_seed(seed), **options)


def seeded(f, *args, **options):
    return lambda seed: f(*args, seed=seed, **options)


IN_40 = torch.linspace(-1, 1, 80).reshape(2, 40)
DIGITS = partial(sde.marginal_score, patterns=IN_40, sigma=digits.SIGMA)
BATCHES = [POINTS, POINTS.view(2, 5, 1, 2)]
SHORT = dict(device="cpu", cache=False, iterations=1)

# (name, function of a seed): all that it returns must follow the seed

RANDOM = [
    ("separate_generator", lambda seed: torch.rand(3, generator=core.separate_generator(seed))),
    ("generate_circle_data", seeded(data.generate_circle_data, 7)),
    ("CircleDataset", lambda seed: data.CircleDataset(7, seed=seed).data),
    ("create_subset", lambda seed: data.create_subset(range(999), 9, seed).indices),
    ("circle_patterns", seeded(data.circle_patterns, 5)),
    ("marginal_sample", given(sde.marginal_sample, 8, 0.3, XI, 0.5)),
    ("marginal_sample", given(sde.marginal_sample, 3, 0.3, XI[:1], 0.5)),
    ("reverse_sde", given(walk)),
    ("Euler_Maruyama_sampler", given(sample, EXACT, SDE, 4, 3, "cpu", patterns=XI)),
    ("Euler_Maruyama_sampler", given(sample, network(), SDE, 4, 3)),
    ("stratified_times", given(training.stratified_times, 4)),
    *(("noisy_batch", given(training.noisy_batch, x, STD)) for x in BATCHES),
    *(("noisy_batch", given(training.noisy_batch, x, STD, patterns=XI)) for x in BATCHES),
    ("train_loop", lambda seed: weights(training.train_loop(XI, SDE, 2, device="cpu", seed=seed))),
    ("trained_model", lambda seed: weights(training.trained_model(XI, seed=seed, **SHORT))),
    ("score_error", seeded(training.score_error, network(), XI, 0.5, n=9)),
    ("ode_likelihood_with_laplacian", seeded(
        likelihood.ode_likelihood_with_laplacian, IN_40, network(40), SDE, eps=0.5, probes=2)),
    ("agreement", seeded(decision.agreement, 0.3, XI, 0.5, n=9)),
    ("open_nats", seeded(decision.open_nats, 0.3, XI, 0.5, n=9)),
    ("effective_dimension", seeded(decision.effective_dimension, 0.3, XI, 0.5, n=9)),
    ("learned_dimension", seeded(transition.learned_dimension, EXACT, XI, 0.5, n=9)),
    ("circle_piece", lambda seed: transition.circle_piece(5, seed, "fresh", samples=999)["recall"]),
    ("digit_images", lambda seed: digits.digit_images(seed, 9)),
    ("train_digits", lambda seed: weights(digits.train_digits(IN_40, 1, seed=seed))),
    ("sample_digits", seeded(digits.sample_digits, DIGITS, 3, patterns=IN_40)),
    ("denoising_error", seeded(digits.denoising_error, network(40), IN_40, draws=4)),
]


def plain(result):
    "All numbers of a result, as a list of arrays."
    parts = result if isinstance(result, (tuple, list)) else [result]
    return [np.asarray(part) for part in parts]


@pytest.mark.parametrize("name, f", RANDOM, ids=[f"{n}{i}" for i, (n, _) in enumerate(RANDOM)])
def test_the_seed_decides_and_nothing_else(name, f):
    "Whatever the global generators hold, which are left as they are."
    results = []
    for around, seed in (1, 5), (2, 5), (2, 6):
        torch.manual_seed(around)
        np.random.seed(around)
        random.seed(around)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        results.append(plain(f(seed)))
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    for same, again, other in zip(*results):
        assert (same == again).all() and (same != other).any()


def test_all_that_is_random_stands_in_the_table():
    found = set()
    for path in (ROOT / CFG["lib_path"]).glob("[a-z]*.py"):
        module = importlib.import_module(f"{CFG['lib_path']}.{path.stem}")
        for name in module.__all__:
            f = getattr(module, name)
            if callable(f) and {"seed", "generator"} & set(inspect.signature(f).parameters):
                found.add(name)
    elsewhere = {"run_one", "run_experiment", "digit_piece", "copying_report"}  # in tests of theirs
    none(sorted(found - {name for name, _ in RANDOM} - elsewhere - {"check_seed"}))


def test_the_usual_steps_follow_the_unit(monkeypatch):
    "Of the memories, where they are known; else of what the network says."
    xi, sde_, asked = 0.02 * XI, sde.VESDETerms(0.5), []
    model = network()
    model.unit.fill_(0.03)
    grid = sampling.time_grid
    monkeypatch.setattr(sampling, "time_grid", lambda *how: asked.append(how[:2]) or grid(*how))
    sample(partial(sde.marginal_score, patterns=xi, sigma=0.5), sde_, 2, patterns=xi, device="cpu")
    sample(model, sde_, 2)
    units = data.unit_of(xi, 0.5), model.unit
    assert asked == [sampling.suited_grid(unit, 0.5) for unit in units]
    assert asked[0] != asked[1] != (50, sde.T_MIN)


def test_answers_take_the_precision_of_the_points():
    "Also of a network whose first parameter is a number that nothing is multiplied with."
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = torch.nn.Parameter(torch.tensor(3), requires_grad=False)
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x, t):
            return self.layer(x)

    for kind in torch.float32, torch.float64:
        assert core.as_score(Counting())(XI.to(kind), 0.5).dtype == kind


def test_samples_of_the_experiment_have_its_seed():
    how = dict(iterations=2, cache=False, device="cpu")
    x = experiment.run_one(3, seed=4, num_samples=5, resolution=5, **how)[1]
    xi = data.circle_patterns(3, 4)
    model = training.trained_model(xi, seed=4, **how)
    g = torch.Generator().manual_seed(4)
    by_hand = sample(model, sde.VESDETerms(1.0), 5, patterns=xi, generator=g)
    assert torch.equal(x, by_hand)


@pytest.mark.parametrize("cache", [False, True])
def test_metrics_say_whether_the_cache_was_used(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(tmp_path / "cache"))
    how = dict(iterations=2, quick=True, device="cpu", out=tmp_path / "out")
    assert experiment.run_experiment([2], cache=cache, **how)["config"]["cache"] is cache
