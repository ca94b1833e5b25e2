"""Clusters, minima and landscapes against heaps, wells and energies that are known."""

from functools import partial

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import none, refused
from numpy.testing import assert_allclose

from amtutorial.data import circle_patterns, plane_grid
from amtutorial.landscape import (
    FEW,
    Landscape,
    cluster_samples,
    compute_landscape,
    plot_combined_landscape,
    plot_comparison,
    plot_landscape,
    plot_reliefs,
)
from amtutorial.minima import find_minima
from amtutorial.scorenet import ScoreNet
from amtutorial.sde import VESDETerms, marginal_logp, marginal_score

NINE, SDE, T = circle_patterns(9), VESDETerms(1.0), 0.15
EXACT = partial(marginal_score, patterns=NINE)
compute = partial(compute_landscape, device="cpu")


@pytest.fixture(scope="module")
def record():
    "The landscape of nine memories on the exact score in place of a network."
    return compute(EXACT, SDE, NINE, T, [[0.0, 0.0], [1.0, 0.0]], resolution=40)


# Clusters


def test_three_heaps_come_back():
    "Known places and sizes; a centre is the mean of a hundred points, to five standard errors."
    g = torch.Generator().manual_seed(0)
    places = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    heaps = places.repeat_interleave(100, 0) + 0.01 * torch.randn(300, 2, generator=g)
    labels, centers = cluster_samples(heaps)
    order = np.argsort(labels[[0, 100, 200]])
    assert len(centers) == 3
    assert all(len(set(labels[i : i + 100])) == 1 for i in (0, 100, 200))
    assert_allclose(centers, places[order], rtol=0, atol=5 * 0.01 / np.sqrt(100))
    assert labels.dtype.kind == "i" and labels.shape == (300,)


def test_the_threshold_is_a_ward_distance():
    "Two groups of m samples, a distance D apart, are joined at D√m."
    pair = torch.tensor([[0.0, 0.0], [0.3, 0.0]]).repeat_interleave(16, 0)  # 0.3 * 4 = 1.2
    assert len(cluster_samples(pair, 1.19)[1]) == 2
    assert len(cluster_samples(pair, 1.21)[1]) == 1
    assert_allclose(cluster_samples(pair, 1.21)[1], [[0.15, 0.0]], atol=1e-6)


def test_clusters_of_any_kind_of_points():
    labels, centers = cluster_samples([[1.0, 2.0]])
    assert labels.tolist() == [0] and centers.tolist() == [[1.0, 2.0]]
    in_3d = torch.eye(3).repeat(4, 1).requires_grad_()
    assert cluster_samples(in_3d, 0.5)[1].shape == (3, 3)
    assert "distance_threshold" in refused(cluster_samples, NINE, 0.0)
    assert "distance_threshold" in refused(cluster_samples, NINE, -1.0)
    assert "samples must have shape (B, d)" in refused(cluster_samples, torch.zeros(5))
    assert "finite" in refused(cluster_samples, [[np.nan, 0.0], [0.0, 0.0]])


# Minima


def test_a_double_well_with_a_known_barrier():
    """E = (x² - 1)² + y² + x/10 has minima near x = -1 and 1 and a pass between them. On a grid of
    spacing 0.02, heights are right to curvature times spacing squared, 8 * 0.02² / 2 = 0.002."""
    gx, gy = np.meshgrid(np.linspace(-1.5, 1.5, 151), np.linspace(-1.5, 1.5, 151), indexing="ij")
    well = lambda x, y=0.0: (x**2 - 1) ** 2 + y**2 + 0.1 * x
    left, middle, right = np.sort(np.roots([4, 0, -4, 0.1]).real)  # dE/dx = 4x³ - 4x + 0.1
    energy, points = well(gx, gy), np.stack([gx, gy], -1)
    found = find_minima(energy, points)
    assert_allclose(found.x[:, 0], [left, right], rtol=0, atol=0.01)
    assert_allclose(found.x[:, 1], 0, atol=0.01)
    assert_allclose(found.barrier[1], well(middle) - well(right), rtol=0, atol=0.004)
    assert torch.isinf(found.barrier[0])
    assert len(find_minima(energy, points, min_barrier=1.1).x) == 1


# Landscapes


def test_on_the_exact_score_learned_is_exact(record):
    "To 0.02 nats rms, since three steps cut corners at watersheds; energies of memories as (2.3)."
    assert record.error < 0.02
    grid, logp = plane_grid(40)[2], partial(marginal_logp, t=T, patterns=NINE)
    highest = torch.cat([logp(grid), logp(NINE), logp(record.centers)]).max()
    close = partial(assert_allclose, rtol=0, atol=0.02)
    close(record.pattern_energy, highest - logp(NINE))
    close(record.center_energy, highest - logp(record.centers))
    assert_allclose(record.exact.ravel(), logp(grid).max() - logp(grid), atol=1e-5)
    assert_allclose(record.score.view(-1, 2), EXACT(grid, T), rtol=1e-5, atol=1e-5)
    assert_allclose(record.minima, record.exact_minima, atol=1e-4)
    assert_allclose(record.n_eff, record.exact_n_eff, rtol=1e-3)


def test_minima_are_where_the_score_vanishes(record):
    "Three: one memory, two mixtures, the deepest first."
    assert_allclose(record.exact_n_eff, [4.08, 2.02, 1.02], atol=0.01)
    for x in record.minima, record.exact_minima:
        assert EXACT(x, T).norm(dim=1).max() < 1e-4
    logp = marginal_logp(record.exact_minima, T, NINE)
    assert (logp.diff() < 0).all()
    assert (logp >= marginal_logp(NINE, T, NINE).max()).sum() == 1


def test_learned_and_exact_minima_follow_their_own_score(record):
    "A score that believes all memories to be elsewhere moves the learned minima, and only them."
    r = compute(partial(marginal_score, patterns=NINE + 0.05), SDE, NINE, T, resolution=40)
    assert_allclose(r.minima, record.minima + 0.05, atol=1e-3)
    assert_allclose(r.exact_minima, record.exact_minima, atol=1e-5)
    assert torch.equal(r.exact, record.exact) and r.error > record.error


def test_one_shift_for_the_whole_record():
    "The lowest of map, memories and centres is zero, wherever it lies."
    two = circle_patterns(2)
    score = partial(marginal_score, patterns=two)
    r = compute(score, SDE, two, 0.01, two[:1], resolution=20)
    lowest = [e.min().item() for e in (r.learned, r.pattern_energy, r.center_energy)]
    assert min(lowest) == 0 and lowest[0] > 0.05  # a coarse grid misses the narrow wells
    assert r.exact.min() == 0


@pytest.mark.parametrize("sigma", [2.0, 0.5])
def test_another_noise_strength_is_another_time(sigma):
    "Only σ²t counts for the exact part and the minima."
    t = 0.15 / sigma**2
    score = partial(marginal_score, patterns=NINE, sigma=sigma)
    a = compute(score, VESDETerms(sigma), NINE, t, resolution=30)
    b = compute(EXACT, SDE, NINE, 0.15, resolution=30)
    assert_allclose(a.exact, b.exact, atol=1e-4)
    assert_allclose(a.minima, b.minima, atol=1e-3)
    assert_allclose(a.n_eff, b.n_eff, rtol=1e-2)
    assert a.error < 0.03 and a.t == t
    assert not torch.allclose(a.learned, compute(EXACT, SDE, NINE, t, resolution=30).learned)


def test_many_memories_are_a_continuum():
    many = circle_patterns(FEW + 1)
    args = dict(sde=SDE, t=T, resolution=12)
    r = compute(partial(marginal_score, patterns=many), patterns=many, **args)
    empty = (r.pattern_energy, r.minima, r.n_eff, r.exact_minima, r.exact_n_eff, r.centers)
    assert all(len(a) == 0 for a in empty) and r.minima.shape == (0, 2)
    assert len(r.patterns) == FEW + 1
    few = many[:FEW]
    r = compute(partial(marginal_score, patterns=few), patterns=few, **args)
    assert len(r.pattern_energy) == FEW and len(r.minima) > 0


def test_shapes_and_kinds(record):
    assert isinstance(record, Landscape) and record.learned.shape == (40, 40)
    assert record.X[0, 0] == -1.5 and record.X[-1, 0] == 1.5 and record.Y[0, -1] == 1.5
    kinds = [v for v in record[1:] if v.dtype != torch.float32 or v.device.type != "cpu"]
    assert not kinds
    lists = compute(EXACT, SDE, NINE.tolist(), T, record.centers.numpy(), resolution=40)
    assert torch.equal(lists.learned, record.learned)
    assert compute(EXACT, SDE, NINE, T, resolution=8, bound=2.0).X.max() == 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ScoreNet(2, marginal_prob_std=SDE.marginal_prob_std, readout=True)
    r = compute(model, SDE, NINE, T, resolution=8)
    assert not any(v.requires_grad for v in r[1:])


def test_refusals():
    good = dict(score_model=EXACT, sde=SDE, patterns=NINE, t=T, resolution=8)
    bad = [
        (dict(t=0.0), "t must lie in (0, 1]"),
        (dict(t=1.5), "t must lie in (0, 1]"),
        (dict(t=[0.1, 0.2]), "t must be one number"),
        (dict(patterns=torch.zeros(3, 3)), "patterns must have 2 coordinates"),
        (dict(centers=[[0.0, 0.0, 0.0]]), "centers must have 2 coordinates"),
        (dict(resolution=0), "resolution must be at least 1"),
        (dict(bound=0.0), "bound must be finite and above 0"),
        (dict(device="cuda:99"), "not available"),
    ]
    said = [(change, part, refused(compute_landscape, **(good | change))) for change, part in bad]
    none([f"{change}: {text!r} lacks {part!r}" for change, part, text in said if part not in text])


# Drawings


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


def labels(ax):
    return {c.get_label(): c for c in ax.collections}


def test_a_map_shows_what_the_record_holds(ax, record):
    "Rings at memories, diamonds at mixtures, crosses at clusters, and no number in the map."
    mappable = plot_landscape(ax, record, NINE + 0.01)
    shown = labels(ax)
    at = lambda name: np.asarray(shown[name].get_offsets())
    assert_allclose(at("memories"), NINE, atol=1e-6)
    assert_allclose(at("samples"), NINE + 0.01, atol=1e-6)
    assert_allclose(at("clusters"), record.centers, atol=1e-6)
    assert_allclose(at("minimum: a memory"), record.minima[record.n_eff < 1.5], atol=1e-6)
    assert_allclose(at("minimum: a mixture"), record.minima[record.n_eff >= 1.5], atol=1e-6)
    assert len(ax.texts) == 0 and ax.get_title() == "K = 9"
    assert mappable.get_clim() == (0, 8)


def test_less_can_be_shown(ax, record):
    mappable = plot_landscape(ax, record, annotate=False, vmax=4.0)
    assert not {"samples", "clusters", "minimum: a memory"} & labels(ax).keys()
    assert "memories" in labels(ax) and mappable.get_clim() == (0, 4)


def test_the_published_function_draws_the_same(ax):
    "Computes on a grid of 75 points; without annotation, without samples, too."
    samples = NINE.numpy()
    groups, centers = cluster_samples(samples, 0.1)
    args = (ax.figure, ax, EXACT, SDE, NINE, samples, groups, centers)
    mappable = plot_combined_landscape(*args, device="cpu")
    assert {"samples", "clusters", "minimum: a mixture"} <= labels(ax).keys()
    assert mappable.get_clim() == (0, 8)
    ax.clear()
    plot_combined_landscape(*args, T, "cpu", False)
    assert not {"samples", "clusters", "minimum: a mixture"} & labels(ax).keys()


@pytest.mark.parametrize("n", [1, 3])
def test_panels(record, n):
    "A panel for each record and one colour bar; a row of three and two bars."
    fig = plot_reliefs([record] * n)
    assert len(fig.axes) == n + 1
    plt.close(fig)
    fig = plot_comparison([record] * n, difference=0.25)
    assert len(fig.axes) == 3 * n + 2
    assert f"rms {record.error:.3f}" in fig.axes[2].get_xlabel()
    assert fig.axes[-1].get_ylim() == (-0.25, 0.25)
    plt.close(fig)


# What the figures show, where learned and exact differ and nothing is at its default


@pytest.fixture(scope="module")
def uneven():
    "A record made by hand in another window: two maps, with minima of their own."
    X, Y, _ = plane_grid(24, 1.2)
    one, two = torch.tensor([[0.5, 0.1]]), torch.tensor([[-0.4, 0.3], [0.2, 0.6]])
    field, n_eff = torch.stack([-Y, X], -1), torch.tensor([1.0, 2.0])
    exact, learned = 4 * (X + 1.2), 3 * (Y + 1.2) + (X + 1.2) / 2
    marked = NINE, torch.arange(9.0), -one, torch.ones(1)
    return Landscape(0.3, X, Y, learned, exact, field, *marked, two, n_eff, one, n_eff[:1])


def test_a_map_shows_the_learned_energy_in_its_window(ax, uneven):
    mappable = plot_landscape(ax, uneven, stride=5, vmax=20.0)
    assert_allclose([mappable.zmin, mappable.zmax], [0, uneven.learned.max()], atol=1e-6)
    assert ax.get_xlim() == ax.get_ylim() == pytest.approx((-1.2, 1.2))
    shown = labels(ax)
    at = [shown[f"minimum: a {kind}"].get_offsets()[0] for kind in ("memory", "mixture")]
    assert_allclose(at, uneven.minima)
    (arrows,) = [c for c in ax.collections if hasattr(c, "U")]
    assert_allclose(np.unique(arrows.X), uneven.X[2::5, 0])


def test_the_published_function_hands_on_what_it_is_given(ax):
    args = ax.figure, ax, EXACT, SDE, NINE, NINE, np.zeros(9), NINE[:2]
    mappable = plot_combined_landscape(*args, 0.6, "cpu", quiver_stride=25)
    X, Y, grid = plane_grid(75)
    energy = -marginal_logp(grid, 0.6, NINE)
    assert_allclose(mappable.zmax, energy.max() - energy.min(), rtol=1e-2)
    (arrows,) = [c for c in ax.collections if hasattr(c, "U")]
    assert len(arrows.X) == 3 * 3


def test_surfaces_show_the_learned_energy_up_to_the_cut(uneven):
    for vmax, top in (20.0, uneven.learned.max()), (5.0, 5.0):
        fig = plot_reliefs([uneven], vmax)
        surface = fig.axes[0].collections[0]
        assert surface.get_clim() == (0, vmax)
        assert top * 0.97 < fig.axes[0].get_zlim()[1] < top * 1.05  # matplotlib leaves a margin
        plt.close(fig)


def test_a_comparison_shows_exact_learned_and_difference(uneven):
    fig = plot_comparison([uneven], vmax=20.0, difference=0.5)
    axs = fig.axes[:3]
    assert [ax.get_title() for ax in axs] == ["exact", "learned", "learned - exact"]
    assert all(ax.get_xlim() == pytest.approx((-1.2, 1.2)) for ax in axs)
    gap = uneven.learned - uneven.exact
    for ax, shown in zip(axs, (uneven.exact, uneven.learned, gap)):
        filled = ax.collections[0]
        assert_allclose([filled.zmin, filled.zmax], [shown.min(), shown.max()], atol=1e-5)
    assert axs[2].collections[0].get_clim() == (-0.5, 0.5)
    assert axs[2].collections[1].levels.tolist() == [6]
    assert axs[0].get_ylabel() == "K = 9"
    plt.close(fig)


def test_the_error_counts_where_the_exact_energy_is_low(uneven):
    wanted = (uneven.learned - uneven.exact)[uneven.exact <= 6].square().mean().sqrt()
    assert uneven.error == pytest.approx(wanted.item(), rel=1e-5)
