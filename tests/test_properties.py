"""Identities that must hold for any memories, dimension, noise strength and time."""

import math

import pytest
import torch
from helpers import refused
from hypothesis import given, settings, strategies as st

from amtutorial.core import as_points
from amtutorial.data import merge_patterns
from amtutorial.likelihood import score_and_divergence
from amtutorial.sampling import memory_shares, reverse_sde, time_grid
from amtutorial.sde import (
    VESDETerms,
    effective_number,
    marginal_logp,
    marginal_sample,
    marginal_score,
    posterior_weights,
)
from amtutorial.training import score_error, train_loop

settings.register_profile("quick", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("quick")


@st.composite
def mixtures(draw):
    "Points (B, d), time, memories (K, d), noise strength; in double precision."
    d, K, g = (
        draw(st.integers(1, 20)),
        draw(st.integers(1, 12)),
        torch.Generator().manual_seed(draw(st.integers(0, 10**6))),
    )
    rand = lambda n: torch.randn(n, d, generator=g, dtype=torch.float64)
    return rand(6), draw(st.floats(0.01, 1)), rand(K), draw(st.floats(0.3, 3))


close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@given(mixtures())
def test_moving_everything_moves_nothing(m):
    x, t, xi, sigma = m
    shift = torch.arange(x.shape[1], dtype=torch.float64)
    close(marginal_logp(x + shift, t, xi + shift, sigma), marginal_logp(x, t, xi, sigma))
    q, _ = torch.linalg.qr(
        torch.randn(
            x.shape[1], x.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
    )
    close(marginal_score(x @ q, t, xi @ q, sigma), marginal_score(x, t, xi, sigma) @ q)


@given(mixtures())
def test_only_the_noise_variance_counts(m):
    x, t, xi, sigma = m
    close(marginal_logp(x, t, xi, sigma), marginal_logp(x, t / 4, xi, 2 * sigma))
    a = 1.7  # lengths in another unit
    close(
        marginal_logp(a * x, t, a * xi, a * sigma) + x.shape[1] * math.log(a),
        marginal_logp(x, t, xi, sigma),
    )


@given(mixtures())
def test_order_and_repetition_of_memories(m):
    x, t, xi, sigma = m
    close(marginal_score(x, t, xi.flip(0).repeat(3, 1), sigma), marginal_score(x, t, xi, sigma))
    n_eff = effective_number(posterior_weights(x, t, xi, sigma))
    assert (n_eff > 1 - 1e-9).all() and (n_eff < len(xi) + 1e-9).all()


@given(mixtures())
def test_score_is_the_gradient_and_divergence_its_trace(m):
    x, t, xi, sigma = m
    time = torch.tensor(t, dtype=torch.float64)
    score, divergence = score_and_divergence(lambda y, s: marginal_score(y, s, xi, sigma), x, time)
    for i in range(2):
        logp = lambda y: marginal_logp(y[None], t, xi, sigma)[0]
        close(score[i], torch.func.grad(logp)(x[i]))
        close(divergence[i], torch.func.hessian(logp)(x[i]).trace())


@pytest.mark.parametrize("d", [1, 3, 10])
def test_whole_chain_in_any_dimension(d):
    "Two distant memories in d dimensions: learned in 300 steps, sampled, each getting its share."
    xi = torch.stack([torch.ones(d), -torch.ones(d)]) / math.sqrt(d)
    sde, g = VESDETerms(2.0), torch.Generator().manual_seed(0)
    model = train_loop(xi, sde, 300, seed=0, device="cpu")
    assert score_error(model, xi, 2.0) < 0.1 * d
    with torch.no_grad():
        *_, x = reverse_sde(model, sde, marginal_sample(500, 1.0, xi, 2.0, g), time_grid(60), g)
    assert memory_shares(x, xi)["p_value"] > 1e-4


def test_many_points_stay_in_bounded_memory():
    "Ten thousand points by 2,000 memories, in blocks, equal a few rows done at once."
    g = torch.Generator().manual_seed(0)
    x, xi = torch.randn(10_000, 3, generator=g), torch.randn(2000, 3, generator=g)
    torch.testing.assert_close(marginal_score(x, 0.3, xi)[-5:], marginal_score(x[-5:], 0.3, xi))


def test_training_points_of_all_kinds():
    xi = torch.randn(5, 2)

    class Points(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return xi[i]

    for kind in (
        xi,
        xi.numpy(),
        xi.tolist(),
        Points(),
        torch.utils.data.DataLoader(Points(), batch_size=2, shuffle=True),
        torch.utils.data.TensorDataset(xi),
        torch.utils.data.TensorDataset(xi, torch.arange(5)),
    ):
        torch.testing.assert_close(as_points(kind), xi)


def test_merging_scales():
    places, share = merge_patterns(
        torch.rand(60_000, 2, generator=torch.Generator().manual_seed(0))
    )
    assert abs(share.sum() - 1) < 1e-3 and len(places) < 60_000


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "x",
        torch.zeros(2, 2, dtype=torch.bool),
        [[1, 2], [3]],
        float("nan"),
        torch.full((2, 2), math.inf),
    ],
)
def test_points_are_refused(bad):
    assert refused(as_points, bad)


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
def test_models_move(device):
    "A network trained anywhere gives the same scores here, to rounding of scores of order ten."
    xi = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    model = train_loop(xi, VESDETerms(1.0, device), 5, seed=0, device=device)
    x, t = torch.randn(20, 2), 0.1 + 0.9 * torch.rand(20)
    with torch.no_grad():
        there = model(x.to(device), t.to(device)).cpu()
    with torch.no_grad():
        torch.testing.assert_close(model.cpu()(x, t), there, rtol=1e-4, atol=1e-4)
