"""Memories on a circle: points, training sets, polar coordinates, merging, the grid."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from amtutorial.data import (
    CircleDataset,
    cartesian_to_polar,
    circle_patterns,
    create_subset,
    generate_circle_data,
    merge_patterns,
    plane_grid,
)
from helpers import refused


@pytest.fixture(scope="module")
def population():
    return generate_circle_data(60_000, seed=9)


# The population


def test_points_lie_on_the_circle(population):
    assert population.shape == (60_000, 2) and population.dtype == np.float64
    assert_allclose(np.hypot(*population.T), 1, rtol=0, atol=1e-12)
    wide = generate_circle_data(100, radius=2.5)
    assert_allclose(np.hypot(*wide.T), 2.5, rtol=0, atol=1e-12)
    assert_allclose(wide, 2.5 * generate_circle_data(100), rtol=0, atol=1e-12)


def test_angles_are_uniform(population):
    "Kolmogorov's distance of N uniform numbers exceeds 1.95/√N once in a thousand draws."
    share = np.sort(np.arctan2(*population.T) / (2 * np.pi) % 1)
    steps = (np.arange(60_000) + 0.5) / 60_000
    assert np.abs(share - steps).max() < 1.95 / math.sqrt(60_000)


def test_generators_are_private():
    "NumPy's and PyTorch's global generators have not moved."
    before, ours = np.random.get_state()[1].copy(), torch.get_rng_state()
    place = np.random.get_state()[2]
    generate_circle_data(100, seed=9)
    create_subset(CircleDataset(50), 9)
    circle_patterns(9)
    assert (np.random.get_state()[1] == before).all() and np.random.get_state()[2] == place
    assert torch.equal(torch.get_rng_state(), ours)


def test_the_seed_decides():
    assert np.array_equal(generate_circle_data(10), generate_circle_data(10, 1, 59))
    assert not np.array_equal(generate_circle_data(10), generate_circle_data(10, seed=60))
    assert not torch.equal(circle_patterns(9), circle_patterns(9, seed=10))


def test_same_points_as_the_published_page():
    "The page seeds NumPy's global generator; the numbers are the same."
    state = np.random.get_state()
    try:
        np.random.seed(9)
        angles = np.random.uniform(0, 2 * np.pi, 60_000)
    finally:
        np.random.set_state(state)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert np.array_equal(points, generate_circle_data(60_000, seed=9))


def test_bad_populations_are_refused():
    for bad in [0, -3]:
        assert "num_samples must be at least 1" in refused(generate_circle_data, bad)
    for bad in [2.5, "many", True]:
        assert "num_samples must be a whole number" in refused(generate_circle_data, bad)
    for bad, message in [
        (dict(radius=0), "ValueError: radius must be finite and above 0, not 0"),
        (dict(radius=math.inf), "ValueError: radius must be finite and above 0, not inf"),
        (dict(radius="1"), "TypeError: radius must be a number"),
        (dict(seed=-1), "ValueError: seed must be between 0 and 4,294,967,295 inclusive, not -1"),
        (dict(seed=2**32), "ValueError: seed must be between 0 and 4,294,967,295 inclusive"),
        (dict(seed=1.5), "TypeError: seed must be a whole number, not float 1.5"),
    ]:
        assert refused(generate_circle_data, 10, **bad).startswith(message)


# Training sets


def test_dataset_and_subset():
    dataset = CircleDataset(60_000, seed=9)
    assert len(dataset) == 60_000 and dataset.data.dtype == torch.float32
    subset = create_subset(dataset, 9, 9)
    nine = dataset[subset.indices]
    assert nine.shape == (9, 2)
    assert len(set(subset.indices)) == 9  # without replacement
    assert subset.indices == create_subset(dataset, 9, 9).indices  # reproducible
    assert subset.indices != create_subset(dataset, 9).indices  # another seed, another draw
    assert torch.equal(circle_patterns(9), nine)
    assert len(create_subset(dataset, 60_000)) == 60_000


def test_bad_sizes_are_refused():
    dataset = CircleDataset(60_000, seed=9)
    for size in 0, 60_001:
        message = f"ValueError: sample_size must be between 1 and 60,000 inclusive, not {size:,}"
        assert refused(create_subset, dataset, size) == message
    assert "K must be between" in refused(circle_patterns, 60_001)
    assert refused(create_subset, dataset, 2.).startswith("TypeError")
    assert refused(create_subset, dataset, 2, -1).startswith("ValueError")


def test_training_sets_are_nested():
    nine = circle_patterns(9)
    assert torch.equal(circle_patterns(1000)[:9], nine)
    assert torch.equal(nine[:2], circle_patterns(2))
    assert torch.equal(circle_patterns(9, 4)[:2], circle_patterns(2, 4))


# Polar coordinates


def test_polar_coordinates_and_back(population):
    R, phi = cartesian_to_polar(population)
    back = np.stack([R * np.cos(phi), R * np.sin(phi)], 1)
    assert_allclose(back, population, rtol=0, atol=1e-12)
    assert (phi > -np.pi).all() and (phi <= np.pi).all()
    assert cartesian_to_polar([[-3., 0.]])[1][0] == pytest.approx(np.pi)


def test_polar_shapes_and_kinds():
    "Arrays and tensors, points, grids and stacks; where two axes fit, the last one counts."
    grid = np.random.RandomState(0).randn(4, 5, 2)
    R, phi = cartesian_to_polar(grid)
    assert R.shape == phi.shape == (4, 5) and isinstance(R, np.ndarray)
    stack = cartesian_to_polar(grid.transpose(0, 2, 1))
    assert_allclose(stack, (R, phi), rtol=0, atol=1e-6)
    tensors = cartesian_to_polar(torch.tensor(grid))
    assert all(isinstance(a, torch.Tensor) for a in tensors)
    assert_allclose(tensors[0].numpy(), R, rtol=0, atol=1e-6)
    both = np.array([[[3., 4.], [0., 1.]]])
    assert_allclose(cartesian_to_polar(both)[0], [[5., 1.]], rtol=0, atol=1e-6)
    assert_allclose(cartesian_to_polar([[3, 4], [0, -2]])[0], [5, 2], rtol=0, atol=1e-6)


def test_bad_points_are_refused():
    for shape in (4, 3), (2,), (4, 3, 5):
        message = refused(cartesian_to_polar, np.zeros(shape))
        assert message.startswith("ValueError: samples must have shape (N, 2), (..., 2) or (n, 2")
        assert message.endswith(f"not {shape}")
    assert "samples must be finite" in refused(cartesian_to_polar, [[0., math.nan]])
    assert refused(cartesian_to_polar, "circle").startswith("TypeError: samples")


# Merging


def test_nine_memories_occupy_eight_places():
    nine = circle_patterns(9)
    gap = (nine[:, None] - nine).double().norm(dim=-1) + 9 * torch.eye(9)
    assert divmod(gap.argmin().item(), 9) == (7, 8)
    assert round(gap.min().item(), 4) == 0.0015
    assert round(gap.flatten().unique()[1].item(), 2) == 0.18
    places, weight = merge_patterns(nine)
    assert len(places) == 8 and places.dtype == weight.dtype == nine.dtype
    assert_allclose(weight.sum(), 1, rtol=0, atol=1e-6)
    assert_allclose(sorted(weight.tolist()), [1 / 9] * 7 + [2 / 9], rtol=0, atol=1e-6)
    heavy = places[weight.argmax()]
    assert_allclose(heavy, nine[7:].mean(0), rtol=0, atol=1e-6)


def test_merging_chains_and_distances():
    chain = torch.tensor([[0.], [.0015], [.003], [1.]])
    places, weight = merge_patterns(chain)  # a chain is one group
    assert_allclose(places.ravel(), [0.0015, 1.], rtol=0, atol=1e-6)
    assert_allclose(weight, [0.75, 0.25], rtol=0, atol=1e-6)
    assert len(merge_patterns(chain, distance=0.001)[0]) == 4
    assert len(merge_patterns(chain, distance=2)[0]) == 1
    assert len(merge_patterns(chain[:1])[0]) == 1
    assert merge_patterns(chain.tolist())[0].shape == (2, 1)
    assert not merge_patterns(chain.clone().requires_grad_())[0].requires_grad
    assert "distance" in refused(merge_patterns, chain, 0)
    assert "patterns" in refused(merge_patterns, torch.zeros(0, 2))


# The grid


def test_grid_of_the_plane():
    X, Y, points = plane_grid(4, 1.5)
    assert X.shape == Y.shape == (4, 4) and points.shape == (16, 2)
    assert torch.equal(points[:, 0].reshape(X.shape), X)
    assert torch.equal(points[:, 1].reshape(Y.shape), Y)
    assert X[:, 0].tolist() == [-1.5, -0.5, 0.5, 1.5] == Y[0].tolist()
    assert plane_grid()[0].shape == (100, 100)
    assert plane_grid(3, 2)[2].abs().max() == 2
    for bad in dict(resolution=0), dict(resolution=1.5), dict(bound=0), dict(bound=-1.):
        assert next(iter(bad)) in refused(plane_grid, **bad)
