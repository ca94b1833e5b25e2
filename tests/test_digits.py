"""Real images: the three classes by brute force, the fair coin, the pieces of the sweep."""
import json
import math
from functools import partial
import numpy as np
import pytest
import torch
from helpers import ROOT, refused
from sklearn.datasets import load_digits
from amtutorial.digits import (
    DELTAS, RECIPES, SIGMA, SIZES, STEPS, Classes, _measures, _plan, by_point, classify_samples,
    copying_report, denoising_error, draw_digits, format_digits,
    digit_images, digit_piece, nearest_images, sample_digits, sweep, train_digits)
from amtutorial.sde import marginal_score

def normal(*shape, seed=0):
    "Standard normal numbers in double precision."
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

@pytest.mark.parametrize("held_out", [1, 773, 1796])
def test_images_are_parted_and_none_is_lost(held_out):
    train, new = digit_images(4, held_out)
    assert train.shape == (1797 - held_out, 64) and new.shape == (held_out, 64)
    both = torch.cat([train, new])
    assert both.dtype == torch.float32 and both.min() == -1 and both.max() == 1
    rows = lambda a: sorted(map(tuple, np.asarray(a).tolist()))
    assert rows((both + 1) * 8) == rows(load_digits().data)

def test_seeds_of_the_images():
    assert torch.equal(digit_images(3)[0], digit_images(3)[0])
    assert not torch.equal(digit_images(3)[0], digit_images(4)[0])
    assert refused(digit_images, -1).startswith("ValueError: seed")
    assert refused(digit_images, 0, 1797) == (
        "ValueError: held_out must be between 1 and 1,796 inclusive, not 1,797")
    assert refused(digit_images, 0, 0).startswith("ValueError: held_out")

def by_hand(samples, patterns, delta_m, delta_s):
    "The classes, one sample after the other, from the definition."
    names = []
    for i, x in enumerate(samples):
        to_train = min(math.dist(x, p) for p in patterns)
        others = [math.dist(x, y) for j, y in enumerate(samples) if j != i]
        odd = min(others, default=math.inf) <= delta_s
        names.append("memorized" if to_train <= delta_m else "spurious" if odd else "generalized")
    return names

@pytest.mark.parametrize("d, scale", [(1, 3.), (2, 1.), (8, 0.4), (9, 0.4), (64, 0.1)])
@pytest.mark.parametrize("offset", [0., 1000.])
def test_classes_by_brute_force(d, scale, offset):
    x, xi = scale * normal(60, d) + offset, scale * normal(40, d, seed=1) + offset
    x[:5], x[5:8] = xi[:5], x[10:13] # exact copies, of memories and of siblings
    seen = set()
    for delta_m, delta_s in (1., 1.), (0.3, 0.6), (0.6, 0.3), (1e-3, 1e-3):
        masks = classify_samples(x, xi, delta_m, delta_s)
        wanted = by_hand(x.tolist(), xi.tolist(), delta_m, delta_s)
        for name, mask in masks._asdict().items():
            assert mask.dtype == torch.bool
            assert mask.tolist() == [w == name for w in wanted], (name, delta_m, delta_s)
        seen |= set(wanted)
    assert len(seen) == 3

def test_thresholds_are_inclusive_and_memorized_comes_first():
    xi, x = [[0., 0.]], [[0., 1.], [0., 1.], [3., 4.], [3., 6.]]
    memorized, spurious, generalized = classify_samples(x, xi, delta_s=2.)
    assert memorized.tolist() == [True, True, False, False]
    assert spurious.tolist() == [False, False, True, True] and not generalized.any()
    assert classify_samples(x, xi, delta_m=5., delta_s=1.).memorized.tolist() == [1, 1, 1, 0]
    assert classify_samples(x, xi, delta_s=1.9).generalized.tolist() == [0, 0, 1, 1]
    assert classify_samples([[9., 9.]], xi).generalized.tolist() == [True] # alone: no sibling

def test_distances_in_blocks_and_their_indices():
    x, xi = normal(3000, 20), normal(1500, 20, seed=1)
    d, which, sibling, other = nearest_images(x, xi)
    plain = torch.cdist(x, xi, compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.allclose(d, plain.min(1).values, atol=1e-10)
    assert torch.equal(which, plain.argmin(1))
    plain = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(9e9)
    assert torch.allclose(sibling, plain.min(1).values, atol=1e-10)
    assert torch.equal(other, plain.argmin(1))

def test_classes_refuse_what_they_cannot_use():
    x = torch.zeros(3, 2)
    assert refused(classify_samples, x, torch.zeros(2, 3)).startswith("ValueError: patterns")
    assert refused(classify_samples, x[0], x).startswith("ValueError: samples")
    assert refused(classify_samples, x * math.nan, x).startswith("ValueError: samples")
    assert refused(classify_samples, "digits", x).startswith("TypeError: samples")
    assert refused(classify_samples, x, x, 0).startswith("ValueError: delta_m")
    assert refused(classify_samples, x, x, 1, math.inf).startswith("ValueError: delta_s")
    whole = classify_samples(np.zeros((3, 2), int), [[0, 0]])
    assert whole.memorized.all() and whole.memorized.shape == (3,)

def test_copies_are_found():
    train, new = normal(200, 5), normal(300, 5, seed=1)
    copies = train[torch.arange(400) % 200] + 1e-4 * normal(400, 5, seed=2)
    copies[7] = train[123]
    report = copying_report(copies, train, new)
    assert report["copied"] == 1 and report["nearer_to_train"] == pytest.approx(1)
    assert report["copied_null"] == 3 / 301 and report["nearer_null"] == 0.4
    assert report["closest"][0] == (7, 123, 0.) and len(report["closest"]) == 5
    labels = 0.4 * 0.6 * (500 / 200 - 1) / 499 # 200 different winners of 500, without replacement
    assert report["nearer_error"] == pytest.approx(math.sqrt(labels), rel=0.02)
    assert all(type(a) in (float, list) for a in report.values())
    json.dumps(report)

@pytest.mark.parametrize("K, M, n", [(150, 90, 100), (90, 150, 100), (20, 20, 2000), (300, 30, 40)])
def test_the_coin_has_the_odds_and_the_error_that_it_says(K, M, n):
    "Fresh samples, many of them or few different ones, over many draws of the data."
    tosses = []
    for seed in range(200):
        x, train, new = (normal(size, 3, seed=3 * seed + i) for i, size in enumerate((n, K, M)))
        x = x if seed % 2 else x[:4].repeat(25, 1) # four answers, each given 25 times
        report = copying_report(x, train, new, 0.2, seed=seed)
        assert report["nearer_null"] == K / (K + M)
        tosses.append((report["nearer_to_train"] - report["nearer_null"]) / report["nearer_error"])
    tosses = torch.tensor(tosses)
    assert abs(tosses.mean()) < 5 / math.sqrt(200)
    for half in tosses[::2], tosses[1::2]:
        assert abs(half.square().mean() - 1) < 5 * math.sqrt(2 / 100)

@pytest.mark.parametrize("K", [10, 100, 1000])
def test_a_copyist_is_convicted_however_few_data_were_held_out(K):
    train, new = normal(K, 8), normal(100, 8, seed=1)
    report = copying_report(train[torch.arange(500) % K], train, new)
    assert report["copied"] == 1 and report["nearer_to_train"] == pytest.approx(1, abs=1e-12)
    assert report["nearer_null"] == K / (K + 100)

def test_ties_go_to_either_side():
    "Where training and held-out data are the same points, half of the ties are won by each."
    x, data = normal(400, 2), normal(300, 2, seed=1)
    near = data + 1e-3 * normal(300, 2, seed=2)
    twins = torch.cat([near, near]) # each held-out point at a training point, but far from delta 0
    report = copying_report(x, data, near)
    assert abs(report["nearer_to_train"] - 0.5) < 5 * report["nearer_error"]
    assert refused(copying_report, x, twins, near).startswith("ValueError: held_out must not hold")
    some = torch.cat([normal(380, 2, seed=3), data[:20]]) # one in twenty is a training point
    assert refused(copying_report, x, data, some).startswith("ValueError: held_out must not hold")

@pytest.mark.parametrize("M, share", [(99, 0.01), (150, 0.01), (10, 0.1)])
def test_fresh_data_are_copies_as_often_as_allowed(M, share):
    "Over many draws of held-out data, fresh ones fall below delta with probability `copied_null`."
    found = []
    for seed in range(200):
        train, new, fresh = (normal(n, 3, seed=3 * seed + i) for i, n in enumerate((50, M, 200)))
        report = copying_report(fresh, train, new, share)
        assert share / 2 < report["copied_null"] <= share
        found.append(report["copied"])
    found = torch.tensor(found)
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean() - report["copied_null"]) < 5 * error

def test_siblings_of_equally_many():
    "The null of repeated samples counts as many held-out data as samples, chosen at random."
    train, new = normal(300, 2), normal(2000, 2, seed=1)
    few, many = (copying_report(normal(n, 2, seed=2), train, new, 0.1) for n in (100, 2000))
    assert few["repeated_null"] < many["repeated_null"]
    for report in few, many:
        assert report["repeated"] == pytest.approx(report["repeated_null"], abs=0.2)
    ordered = copying_report(normal(100, 2, seed=2), train, new[new[:, 0].argsort()], 0.1)
    assert ordered["repeated_null"] == pytest.approx(few["repeated_null"], abs=0.2)

def test_images_of_any_shape_are_reported_on():
    train, new, x = normal(50, 16), normal(120, 16, seed=1), normal(30, 16, seed=2)
    pictures = [a.view(-1, 1, 4, 4) for a in (x, train, new)]
    assert copying_report(*pictures) == copying_report(x, train, new)

def test_siblings_are_never_the_sample_itself():
    x = normal(50, 64)
    d, which = nearest_images(torch.cat([x, x]), x)[2:]
    assert torch.equal(which, torch.arange(100).roll(50)) and (d == 0).all()
    far = 200 * torch.rand(20, 3072, generator=torch.Generator().manual_seed(1)) # grey values
    assert (nearest_images(far, far)[0] == 0).all()

def test_false_alarms_and_bad_input_of_the_report():
    x, train, new = normal(50, 3), normal(60, 3, seed=1), normal(1000, 3, seed=2)
    for share in 0.01, 0.2:
        assert copying_report(x, train, new, share)["copied_null"] == int(share * 1001) / 1001
    for M in 100, 150: # never above what is allowed
        report = copying_report(x, train, new[:M], 0.01)
        nearest = torch.cdist(new[:M], train).min(1).values
        assert (nearest < report["delta"]).double().mean() <= 0.01
    assert refused(copying_report, x, train, new[:98]) == (
        "ValueError: held_out must hold 99 data for that false_alarm, not 98")
    many = partial(copying_report, normal(1500, 3, seed=3), train, new, 0.5)
    assert many(seed=1) == many(seed=1) != many(seed=2)
    assert refused(copying_report, x, train, new[:, :2]).startswith("ValueError: held_out")
    assert refused(copying_report, x[:, :2], train, new).startswith("ValueError: samples")
    assert refused(copying_report, x, train[0], new).startswith("ValueError: train")
    assert refused(copying_report, x, train, new, 1.5).startswith("ValueError: false_alarm")

def test_denoising_error_at_its_two_ends():
    train, new = digit_images()
    zero = lambda x, t: torch.zeros_like(x)
    for noise in 0.3, 1.2:
        assert denoising_error(zero, new, noise) == pytest.approx(1, abs=0.02)
        one = partial(marginal_score, patterns=train[:1], sigma=SIGMA)
        assert denoising_error(one, train[:1], noise) < 1e-6
        wrong = (train[:1] - new).square().mean().item() / noise**2
        assert denoising_error(one, new, noise, draws=773) == pytest.approx(wrong, rel=1e-3)
    assert denoising_error(zero, new, seed=1) != denoising_error(zero, new, seed=2)

def test_training_and_sampling_follow_their_seeds():
    xi = digit_images()[0][:4]
    train = lambda **options: train_digits(xi, 3, **options).output.weight.detach()
    assert torch.equal(train(seed=1), train(seed=1))
    assert not torch.equal(train(seed=1), train(seed=2))
    assert not torch.equal(train(), train(recipe="steady"))
    model = train_digits(xi, 3)
    x = sample_digits(model, 5, 1)
    assert x.shape == (5, 64) and torch.equal(x, sample_digits(model, 5, 1))
    assert not torch.equal(x, sample_digits(model, 5, 2))
    for wrong in "fast", ["cycle"]:
        assert refused(train_digits, xi, 3, wrong) == (
            f"ValueError: recipe must be one of {', '.join(RECIPES)}, not {wrong!r}")
    assert refused(train_digits, xi, 0).startswith("ValueError: steps")
    assert refused(sample_digits, model, 0).startswith("ValueError: n ")
    exact = partial(marginal_score, patterns=xi, sigma=SIGMA)
    assert refused(sample_digits, exact, 5).startswith("ValueError: patterns are needed")
    for noise in 9., [0.3, 0.3], 0.:
        assert "noise" in refused(denoising_error, model, xi, noise)
    assert denoising_error(model, xi, np.array([0.3])) == denoising_error(model, xi, 0.3)
    assert refused(denoising_error, model, xi[0]).startswith("ValueError: images")

def test_the_exact_score_memorizes():
    numbers = digit_piece("exact", 32, 0, seed=1, n=100)
    assert numbers["memorized"] == [1.] * len(DELTAS) and numbers["spurious"] == [0.] * len(DELTAS)
    assert numbers["error_train"] < 1e-4 and numbers["error_new"] > 1
    assert numbers["n_spurious"] == numbers["answers"] == 0 and numbers["nearer"] is None
    assert refused(digit_piece, "exact", 1025, 0).startswith("ValueError: K")

def test_a_small_sweep_is_kept_and_read_back(tmp_path):
    table = sweep([8], 1, [2], jobs=1, folder=tmp_path, quick=True)
    settings = [piece["settings"] for piece in table["pieces"]]
    assert settings == [dict(recipe="exact", K=8, steps=0, seed=0),
                        dict(recipe="cycle", K=8, steps=2, seed=0)]
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert kept == json.loads(json.dumps(table)) and set(kept) == {"config", "versions", "pieces"}
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "pieces").iterdir()}
    assert len(before) == 2
    assert sweep(8, 1, 2, jobs=1, folder=tmp_path, quick=True)["pieces"] == table["pieces"]
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "pieces").iterdir()}
    assert refused(sweep, [1025], folder=tmp_path).startswith("ValueError: each of sizes")
    assert refused(sweep, seeds=0, folder=tmp_path).startswith("ValueError: seeds")
    assert refused(sweep, steps=[1.5], folder=tmp_path).startswith("TypeError: each of steps")

def test_the_table_of_the_repository():
    table = json.loads((ROOT / "nbs" / "sweeps" / "digits.json").read_text())
    config = table["config"]
    assert config["sizes"] == list(SIZES) and config["steps"] == list(STEPS)
    planned = _plan(SIZES, range(config["seeds"]), STEPS, False)
    assert [piece["settings"] for piece in table["pieces"]] == planned # whole, and in order
    for piece in table["pieces"]:
        numbers, where = piece["numbers"], piece["settings"]
        shares = np.array([numbers["memorized"], numbers["spurious"]])
        assert (shares >= 0).all() and (shares.sum(0) <= 1 + 1e-9).all(), where
        assert (np.diff(shares[0]) >= 0).all(), where # the more is near, the wider the threshold
        if where["recipe"] == "exact":
            assert shares[0, DELTAS.index(1.)] > 0.99

# A table made by hand, and every setting off its default

def measured(recipe, K, steps, memorized, spurious):
    "A piece with these shares at the threshold 1, and others at the others."
    at_one = lambda share: [share if delta == 1 else 0.5 for delta in DELTAS]
    numbers = dict(memorized=at_one(memorized), spurious=at_one(spurious))
    return dict(settings=dict(recipe=recipe, K=K, steps=steps, seed=0), numbers=numbers)

@pytest.fixture
def table():
    "Two seeds of the first recipe at each point, and one of another recipe."
    pieces, config = [], dict(sizes=[16, 64, 256], steps=[30, 125])
    for i, K in enumerate(config["sizes"]):
        for j, n in enumerate(config["steps"]):
            m, a = 0.1 * i + 0.2 * j, 0.05 + 0.01 * i
            pieces += [measured("cycle", K, n, m + e, a - e) for e in (-0.04, 0.04)]
            pieces.append(measured("steady", K, n, 0.9, 0.05))
    return dict(config=config, pieces=pieces)

def test_shares_of_a_known_table(table):
    row = by_point(table)["cycle", 64, 125][0]
    assert row["memorized"] == pytest.approx(0.26) and row["spurious"] == pytest.approx(0.1)
    assert row["generalized"] == pytest.approx(1 - 0.26 - 0.1)
    lines = [line.split() for line in format_digits(table).splitlines()]
    assert lines[0][-2:] == ["30", "125"] and [line[0] for line in lines[1:]] == ["16", "64", "256"]
    assert lines[3][1:] == "0.20 / 0.07 0.40 / 0.07".split()

def test_the_figure_shows_each_class_where_it_belongs(table):
    axs = draw_digits(table).axes
    for i, ax in enumerate(axs[:3]):
        (image,) = ax.images
        memorized = np.array([[0., 0.1, 0.2], [0.2, 0.3, 0.4]])
        spurious = np.array([[0.05, 0.06, 0.07]] * 2)
        shares = memorized, spurious, 1 - memorized - spurious
        assert np.allclose(image.get_array(), shares[i]) and image.get_clim() == (0, 1)
        assert image.origin == "lower" and ax.get_title() == Classes._fields[i]
        assert [t.get_text() for t in ax.get_xticklabels()] == ["16", "64", "256"]
    assert [t.get_text() for t in axs[0].get_yticklabels()] == ["30", "125"]

def test_training_is_asked_for_what_the_recipe_says(monkeypatch):
    asked = []
    monkeypatch.setattr("amtutorial.digits.train_loop", lambda *a, **k: asked.append((a, k)))
    train_digits(torch.zeros(2, 64), 7, "slow", 5)
    (_, sde, steps), options = asked[0]
    assert sde.sigma == SIGMA and steps == 7 and options["seed"] == 5
    assert options["lr"] == 1e-4 and options["average"] == 0.99
    assert options["exact_targets"] is False # plain denoising

def test_a_piece_follows_its_settings(monkeypatch):
    asked = []
    def sample(model, n, seed, patterns):
        asked.append((n, seed, patterns))
        return patterns[torch.arange(n) % len(patterns)]
    monkeypatch.setattr("amtutorial.digits.sample_digits", sample)
    digit_piece("exact", 4, 0, seed=3, n=6)
    n, seed, patterns = asked[0]
    assert (n, seed) == (6, 3) and torch.equal(patterns, digit_images(3)[0][:4])

def test_what_is_nearer_to_spurious_samples():
    "Pairs of siblings, three beside new data and one beside data trained on."
    train, new = 9 * torch.eye(6, 64), -9 * torch.eye(6, 64)
    beside = torch.cat([new[:3], train[:1]]) + 2 * torch.eye(64)[10:14]
    x = torch.cat([beside, beside + 0.1 * torch.eye(64)[20:24]])
    zero = lambda x, t: torch.zeros_like(x)
    numbers = _measures(zero, x, train, new)
    assert numbers["nearer"] == 0.25 and numbers["n_spurious"] == 8 and numbers["answers"] == 4

def test_what_is_asked_for_twice_is_done_once():
    plan = _plan([16, 16], range(1), [30, 30], True)
    assert plan == _plan([16], range(1), [30], True) and len(plan) == 2

def test_noise_is_drawn_as_often_as_asked():
    "Ten images, thirty and three thousand draws: the scatter over seeds falls by ten."
    x, zero = digit_images()[1][:10], lambda x, t: torch.zeros_like(x)
    scatter = [np.std([denoising_error(zero, x, seed=s, draws=n) for s in range(12)])
               for n in (30, 3000)]
    assert scatter[0] > 4 * scatter[1]

def test_exact_ties_are_decided_by_chance():
    "Each sample is as far from a training point as from one held out, as grey values can be."
    at = torch.stack([10. * torch.arange(200), torch.zeros(200)], 1)
    up = torch.tensor([0., 1.])
    report = partial(copying_report, at, at + up, at - up)
    assert abs(report()["nearer_to_train"] - 0.5) < 5 * math.sqrt(0.25 / 200)
    assert report(seed=1) == report(seed=1) and report(seed=1) != report(seed=2)
