"""The transition on the circle: recall between its two ends, the sweep, the table."""
import json
import math
import numpy as np
import pandas as pd
import pytest
import torch
from functools import partial
from helpers import ROOT, none, refused
from amtutorial.data import circle_patterns, generate_circle_data
from amtutorial.decision import effective_dimension
from amtutorial.sde import marginal_sample, marginal_score, posterior_mean
from amtutorial.sweeps import run_pieces
from amtutorial.transition import ANSWERS, TIMES, circle_piece, circle_recall, covered_share
from amtutorial.transition import draw_transition, format_transition, index_by_size
from amtutorial.transition import SIZES, learned_dimension, pick, predicted_recall, sweep
from amtutorial.transition import _plan

def on_circle(angles):
    "Points at these angles, in double precision."
    angles = torch.as_tensor(angles, dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin()], 1)

# What counts as recall

@pytest.mark.parametrize("K", [1, 2, 9, 1000])
def test_memories_recall_and_fresh_points_do_not(K):
    xi = circle_patterns(K, 3)
    assert circle_recall(xi, xi) == 1
    fresh = circle_recall(generate_circle_data(40_000, seed=1234), xi)
    f0 = covered_share(xi)
    assert abs(fresh - f0) < 5 * math.sqrt(f0 * (1 - f0) / 40_000)

@pytest.mark.parametrize("width", [0.02, 0.1, 0.4])
def test_null_of_random_memories(width):
    "Each memory misses a fresh point independently of the others."
    rng = np.random.default_rng(5)
    for K in 2, 5, 40:
        shares = [covered_share(on_circle(rng.uniform(0, 2 * math.pi, K)), width)
                  for _ in range(300)]
        error = np.std(shares, ddof=1) / math.sqrt(300)
        assert abs(np.mean(shares) - 1 + (1 - 2 * width / K)**K) < 5 * error

def test_width_decides_to_the_edge():
    "Four memories, samples just within and just beyond a tenth of their spacing; also at ±π."
    xi, near = on_circle([0., math.pi / 2, math.pi, -math.pi / 2]), 0.1 * math.pi / 2
    for at in 0., math.pi, -math.pi, math.pi / 2:
        assert circle_recall(on_circle([at + 0.999 * near, at - 0.999 * near]), xi) == 1
        assert circle_recall(on_circle([at + 1.001 * near, at - 1.001 * near]), xi) == 0
    assert circle_recall(on_circle([1.9 * near]), xi, 0.2) == 1
    assert circle_recall(on_circle([math.pi / 4]), xi, 0.5001) == 1

def test_only_the_angle_counts():
    xi, x = circle_patterns(20).double(), on_circle(np.linspace(-3, 3, 500))
    f = circle_recall(x, xi)
    assert 0 < f < 1 and circle_recall(0.01 * x, 7 * xi) == f
    for kind in (x.tolist(), x.numpy(), pd.DataFrame(x.numpy()), x.float()):
        assert abs(circle_recall(kind, xi) - f) <= 0.002

def test_order_does_not_matter():
    xi, x = circle_patterns(50), generate_circle_data(500, seed=5)
    turned = xi[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    assert circle_recall(x, xi) == circle_recall(x[::-1], turned)
    assert covered_share(xi) == covered_share(turned)

def test_covered_share_against_counting():
    for K in 1, 3, 30:
        xi = circle_patterns(K, 8)
        for width in 0.1, 0.5, 3.:
            even = circle_recall(on_circle(torch.linspace(-math.pi, math.pi, 200_001)), xi, width)
            assert abs(covered_share(xi, width) - even) < 1e-3

def test_bad_input_is_refused():
    xi = circle_patterns(4)
    none([name for name, f in dict(
        width=lambda: circle_recall(xi, xi, 0.), negative=lambda: covered_share(xi, -1.),
        dimension=lambda: circle_recall(torch.zeros(5, 3), xi),
        flat=lambda: circle_recall([1.], xi),
        nan=lambda: circle_recall(xi * math.nan, xi), empty=lambda: circle_recall(xi[:0], xi),
        memories=lambda: covered_share(torch.zeros(5, 3)),
        jobs=lambda: sweep(jobs=0),
        sizes=lambda: sweep(sizes=(4, 0)), one=lambda: sweep(1), seeds=lambda: sweep(seeds=0),
        steps=lambda: sweep(steps=2.5), many=lambda: sweep(sizes=60_001)).items()
        if "\n" in refused(f)])

# The sweep

def test_side_by_side(tmp_path):
    "Two processes give what one gives."
    settings = [dict(K=K, seed=1, answer="fresh", samples=200) for K in (3, 5)]
    two = run_pieces(circle_piece, settings, tmp_path / "two", 2)
    assert two == run_pieces(circle_piece, settings, tmp_path / "one", 1)

@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, sweep(sizes=(2, 6), seeds=2, steps=20, jobs=1, folder=folder, quick=True)

def test_a_small_sweep_and_its_table(small):
    folder, table = small
    assert json.loads((folder / "metrics.json").read_text()) == table
    assert table["config"] == dict(sizes=[2, 6], seeds=2, steps=20, quick=True)
    assert len(table["pieces"]) == 2 * 2 * 5 and not list(folder.rglob("*.part"))
    assert len(pick(table, 6, answer="draws")) == 2 and not pick(table, 6, answer="draws", lr=1.)
    f, error, m, _ = index_by_size(table, answer="following")[6]
    assert f == m == 1 and error == 0
    lines = format_transition(table).splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1
    assert draw_transition(table).axes[0].get_ylabel()

@pytest.mark.parametrize("steps", [4, 250, 1000, 4000])
def test_plan_trains_all_factors_as_long_as_the_base(steps):
    "What is not a change of the steps trains as many steps as the pieces that it is drawn beside."
    plan = list(_plan(SIZES, 2, steps, False))
    trained = [s for s in plan if s["answer"] in ("means", "draws")]
    changed = [s for s in trained if set(s) - {"K", "seed", "answer", "iterations"}]
    base = [s for s in trained if s not in changed]
    assert len({json.dumps(s, sort_keys=True) for s in plan}) == len(plan)
    assert sum(s.get("iterations", 1000) == steps for s in base) == 2 * 2 * len(SIZES)
    others = {s["iterations"] for s in base if s.get("iterations", 1000) != steps}
    assert others == {steps // 4, 4 * steps, 16 * steps}
    none([s for s in changed if s.get("iterations", 1000) != steps
          and not (s.get("lr") and s["iterations"] == 4 * steps)])
    table = dict(config=dict(steps=steps), pieces=[dict(settings=s) for s in plan])
    assert len(pick(table, 32, answer="means")) == len(pick(table, 32, answer="exact")) == 2
    assert len(pick(table, 32, answer="means", lr=5e-3)) == 2
    assert len(pick(table, 32, answer="means", lr=5e-3, iterations=4 * steps)) == 2
    assert len(pick(table, 64, answer="draws", iterations=16 * steps)) == 2
    assert len(pick(table, answer="means", network=dict(num_layers=8))) == 2 * 3

def test_plan_of_the_kept_table():
    "The pieces that are kept with the book are the ones that the command would compute."
    table = json.loads((ROOT / "nbs" / "sweeps" / "transition.json").read_text())
    config = table["config"]
    plan = _plan(config["sizes"], config["seeds"], config["steps"], config["quick"])
    assert [p["settings"] for p in table["pieces"]] == list(plan)

def test_seeds_and_answers_differ(small):
    _, table = small
    results = {json.dumps(p["numbers"]) for p in table["pieces"]}
    assert len(results) == len(table["pieces"]) - 4 # in both sizes "following" is "exact"

def test_unit_does_not_matter():
    "The exact score in another unit: the same samples, up to rounding."
    one, ten = (circle_piece(12, 4, "exact", samples=300, radius=r) for r in (1., 10.))
    assert np.allclose(one["inside"], ten["inside"], atol=2)
    assert np.allclose(one["null"], ten["null"])

def test_dimension_of_the_exact_score():
    xi = circle_patterns(16)
    score = partial(marginal_score, patterns=2 * xi, sigma=2.)
    for t in 0.1, 0.01, 0.001:
        mean, error = learned_dimension(score, 2 * xi, 2., 4000, t=t)
        exact, spread = effective_dimension(t, xi, seed=7)
        assert abs(mean - exact) < 5 * math.hypot(error, spread) + 1e-3

def test_theory_has_both_ends():
    null = 1 - math.exp(-0.2)
    for K in 2, 30, 1000, 50_000:
        assert abs(predicted_recall(K, [1.] * len(TIMES)) - null) < 1e-12
        assert predicted_recall(K, [0.] * len(TIMES)) == 1
    falls = [predicted_recall(K, [0.9] * len(TIMES)) for K in (8, 32, 128, 512)]
    assert all(a > b > null for a, b in zip(falls, falls[1:]))
    assert predicted_recall(32, [0.9] * len(TIMES), 0.2) > falls[1]

def test_exact_recall_depends_on_the_last_noise_in_spacings():
    "A noised memory, denoised: K √ε decides, and at a tenth nearly all is recalled."
    for ratio in 3., 1., 0.1:
        found = []
        for K in 64, 1000:
            xi, g = circle_patterns(K, 5).double(), torch.Generator().manual_seed(1)
            v = torch.full((4000, 1), (ratio / K)**2)
            x = marginal_sample(4000, v[0].item(), xi, generator=g)
            found.append(circle_recall(posterior_mean(x, v, xi), xi))
        assert max(found) - min(found) < 0.05
    assert min(found) > 0.99

# The table that is kept with the book

def test_a_kept_piece_is_what_the_code_gives():
    "Without training a piece is the same on every machine, up to rounding."
    table = json.loads((ROOT / "nbs" / "sweeps" / "transition.json").read_text())
    for K, answer in (256, "exact"), (512, "following"), (48, "fresh"):
        [kept] = [p["numbers"] for p in pick(table, K, answer=answer) if p["settings"]["seed"] == 1]
        now = circle_piece(K, 1, answer)
        assert np.allclose(now["recall"], kept["recall"], atol=0.003)
        assert np.allclose(now["null"], kept["null"], atol=1e-6)

def test_kept_table():
    table = json.loads((ROOT / "nbs" / "sweeps" / "transition.json").read_text())
    rows = {a: index_by_size(table, answer=a) for a in ANSWERS}
    assert len(table["config"]["sizes"]) >= 12
    none([("following", K) for K, row in rows["following"].items() if row[0] < 0.99])
    for answer in "means", "draws":
        f = {K: row[0] for K, row in rows[answer].items()}
        error = {K: row[1] for K, row in rows[answer].items()}
        assert f[2] >= 0.99 and f[4] >= 0.99 and abs(f[1000] - 0.181) < 0.03
        pairs = zip(f, list(f)[1:])
        none([(answer, a, b) for a, b in pairs
              if f[b] > f[a] + 3 * math.hypot(error[a], error[b]) + 0.01])
        assert 8 < min(K for K in f if f[K] < 0.6) <= 64

# A table made by hand, and every setting off its default

def table_of(recalls, null=0.2, steps=20):
    "A table: answer -> K -> recall for each seed."
    pieces = [
        dict(settings=dict(K=K, seed=seed, answer=answer), numbers=dict(recall=[f], null=[null]))
        for answer, sizes in recalls.items() for K, values in sizes.items()
        for seed, f in enumerate(values)]
    for piece in pieces:
        if piece["settings"]["answer"] in ("means", "draws"):
            piece["settings"]["iterations"] = steps
    return dict(config=dict(sizes=[4, 9], steps=steps), pieces=pieces)

def test_means_errors_and_index_by_hand():
    table = table_of({a: {4: (0.9, 0.5), 9: (0.6,)} for a in ANSWERS})
    rows = index_by_size(table, answer="means")
    index = [(f - 0.2) / 0.8 for f in (0.9, 0.5)]
    wanted = 0.7, 0.4 / 2, sum(index) / 2, (index[0] - index[1]) / 2 # the error of two: half a gap
    assert np.allclose(rows[4], wanted) and np.allclose(rows[9], (0.6, 0, 0.5, 0))
    assert [p["settings"]["K"] for p in pick(table, 9, answer="draws")] == [9]
    assert len(pick(table, answer="draws")) == 3
    lines = [line.split() for line in format_transition(table).splitlines()]
    assert lines[0] == ["recall", *ANSWERS]
    assert lines[1] == ["4", *"0.700 ± 0.200".split() * 5]

def test_the_figure_shows_recall_and_its_errors():
    table = table_of({a: {4: (0.9, 0.5), 9: (0.6 - i / 10,)} for i, a in enumerate(ANSWERS)})
    ax = draw_transition(table).axes[0]
    shown = {bars.get_label(): bars for bars in ax.containers}
    assert list(shown) == list(ANSWERS.values())
    for i, bars in enumerate(shown.values()):
        line, _, (error,) = bars
        assert np.allclose(line.get_xydata(), [(4, 0.7), (9, 0.6 - i / 10)])
        assert np.allclose(error.get_segments()[0], [(4, 0.5), (4, 0.9)])
    assert np.allclose(ax.lines[-1].get_ydata(), 1 - math.exp(-0.2)) # nothing but chance
    assert ax.get_ylim() == (0, 1.05) and ax.get_xscale() == "log"

def test_quick_plans_and_sizes_that_are_not_asked_for(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("amtutorial.transition.run_pieces", lambda f, plan, *_: asked.append(plan))
    table = sweep(quick=True, folder=tmp_path)
    assert table["config"] == dict(sizes=[2, 16, 128], seeds=2, steps=200, quick=True)
    assert len(asked[0]) == 3 * 2 * len(ANSWERS) # no factors
    assert {s["K"] for s in _plan([32, 5], 1, 1000, False)} == {32, 5}

def test_seeds_of_a_piece(monkeypatch):
    "Memories, training, samples and errors: each has a seed of its own, made from the piece's."
    seen = []
    def train(xi, *_, **options):
        seen.append(options)
        return partial(marginal_score, patterns=xi)
    def sample(score, sde, n, steps, device, eps, *, patterns, generator):
        seen[-1] |= dict(generator=generator.initial_seed(), eps=eps)
        return patterns.repeat(n, 1)
    monkeypatch.setattr("amtutorial.transition.train_loop", train)
    monkeypatch.setattr("amtutorial.transition.Euler_Maruyama_sampler", sample)
    for seed, answer in (1, "draws"), (2, "means"):
        circle_piece(3, seed, answer, samples=5)
    assert [s["seed"] for s in seen] == [10_001, 10_002]
    assert [s["generator"] for s in seen] == [20_001, 20_002]
    assert [s["exact_targets"] for s in seen] == [False, True]
    circle_piece(400, 1, "following", samples=5)
    assert seen[-1]["eps"] == pytest.approx(0.1**2 / 400**2)

def test_off_the_circle_and_near_an_end():
    "Fresh points lie on the circle of any radius, and a fifth of them in the outer tenths of gaps."
    found = circle_piece(12, 4, "fresh", samples=4000, radius=10.)
    assert found["off"] < 1e-5
    share = sum(found["at_end"]) / sum(found["inside"])
    assert abs(share - 0.2) < 5 * math.sqrt(0.2 * 0.8 / 4000)

def test_states_of_the_dimension_follow_their_seed():
    xi = circle_patterns(5)
    of = lambda seed: learned_dimension(partial(marginal_score, patterns=xi), xi, n=50, seed=seed)
    assert of(1) == of(1) != of(2)
