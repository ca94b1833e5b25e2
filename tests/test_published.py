"""The published page's vocabulary: names, call signatures, patterns and checkpoints."""

import inspect
import math

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, random_split

from amtutorial.circle import energy_am, score_am
from amtutorial.data import (
    CircleDataset,
    cartesian_to_polar,
    circle_patterns,
    create_subset,
    generate_circle_data,
)
from amtutorial.landscape import cluster_samples, plot_combined_landscape, plot_energy_surface_3d
from amtutorial.likelihood import compute_laplacian, ode_likelihood_with_laplacian, to_energy
from amtutorial.sampling import Euler_Maruyama_sampler
from amtutorial.scorenet import FourierEmbedding, ScoreNet
from amtutorial.sde import VESDETerms
from amtutorial.training import loss_fn, train_loop, update_ema

SIGNATURES = {
    generate_circle_data: "num_samples radius seed",
    CircleDataset: "num_samples radius seed",
    create_subset: "dataset sample_size seed",
    cartesian_to_polar: "samples",
    VESDETerms: "sigma_max device",
    FourierEmbedding: "embed_dim scale",
    ScoreNet: "input_dim num_layers hidden_dim embed_dim marginal_prob_std",
    update_ema: "ema_model model decay",
    loss_fn: "model x marginal_prob_std eps",
    train_loop: "train_loader vesde iterations lr device log_freq",
    Euler_Maruyama_sampler: "score_model sde batch_size num_steps device eps",
    compute_laplacian: "score_fn x t",
    ode_likelihood_with_laplacian: "x score_model sde device eps",
    to_energy: "loglikelihood normalize",
    energy_am: "samples beta normalize",
    score_am: "samples beta epsilon",
    plot_energy_surface_3d: "fig ax X Y energy view_angle title",
    plot_combined_landscape: "fig ax score_model sde patterns samples labels centers t_eval device "
    "annotate quiver_stride",
}


@pytest.mark.parametrize("f", SIGNATURES, ids=lambda f: f.__name__)
def test_positional_order(f):
    "The published arguments come first, in their order; what we add is keyword-only or follows."
    names = SIGNATURES[f].split()
    parameters = list(inspect.signature(f).parameters.values())
    assert [p.name for p in parameters[: len(names)]] == names
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters[: len(names)])
    added = [p for p in parameters[len(names) :] if p.kind is not p.VAR_KEYWORD]
    assert all(p.default is not p.empty for p in added)


@pytest.mark.parametrize("K", [2, 9, 1000])
@pytest.mark.parametrize("seed", [9, 3])
def test_same_patterns(K, seed):
    "The page's route to its training set, by NumPy's global generator, restored afterwards."
    state = np.random.get_state()
    np.random.seed(seed)
    angle = np.random.uniform(0, 2 * np.pi, 60_000)
    np.random.set_state(state)
    points = torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)], axis=1)).float()
    subset, _ = random_split(points, [K, 60_000 - K], generator=torch.Generator().manual_seed(seed))
    assert torch.equal(circle_patterns(K, seed), points[subset.indices])


def test_first_patterns_are_known():
    "Known answer: the two published memories, to four digits."
    assert torch.allclose(
        circle_patterns(2), torch.tensor([[-0.9513, -0.3084], [0.7360, -0.6770]]), atol=1e-4
    )


def published_state(seed=0):
    "Random weights under the names and in the shapes of a published checkpoint."
    g = torch.Generator().manual_seed(seed)
    linear = lambda name, o, i: {
        f"{name}.weight": torch.randn(o, i, generator=g) / math.sqrt(i),
        f"{name}.bias": torch.randn(o, generator=g) / 10,
    }
    return {
        "time_embed.0.freqs": 16 * torch.randn(64, generator=g),
        **linear("time_embed.1", 128, 128),
        **linear("time_embed.3", 128, 128),
        **linear("input_proj", 128, 130),
        **linear("hidden.0", 128, 128),
        **linear("hidden.2", 128, 128),
        **linear("hidden.4", 128, 128),
        "hidden.5.weight": 1 + torch.randn(128, generator=g) / 10,
        "hidden.5.bias": torch.randn(128, generator=g) / 10,
        **linear("output", 2, 128),
    }


def test_loads_a_published_checkpoint():
    "Against NumPy in double precision; angles up to 300 are rounded alike, as single ones are."
    state, x, t = published_state(), torch.randn(200, 2), 0.1 + 0.9 * torch.rand(200)
    model = ScoreNet(marginal_prob_std=VESDETerms(1.0).marginal_prob_std)
    model.load_state_dict(state)
    w = {name: value.double().numpy() for name, value in state.items()}
    silu, layer = (
        lambda a: a / (1 + np.exp(-a)),
        lambda a, name: a @ w[f"{name}.weight"].T + w[f"{name}.bias"],
    )
    wave = (t[:, None] * (2 * torch.pi * state["time_embed.0.freqs"])).double().numpy()
    e = silu(
        layer(
            silu(layer(np.concatenate([np.cos(wave), np.sin(wave)], 1), "time_embed.1")),
            "time_embed.3",
        )
    )
    h = layer(
        silu(
            layer(
                silu(
                    layer(
                        layer(np.concatenate([x.double().numpy(), e], 1), "input_proj"), "hidden.0"
                    )
                ),
                "hidden.2",
            )
        ),
        "hidden.4",
    )
    h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
    expected = (
        layer(silu(h * w["hidden.5.weight"] + w["hidden.5.bias"]), "output")
        / np.sqrt(t.double().numpy())[:, None]
    )
    with torch.no_grad():
        np.testing.assert_allclose(
            model(x, t), expected, rtol=1e-6, atol=5e-6
        )  # outputs of up to ten


def test_driver(tmp_path):
    "The page's driver, call for call, shortened: train, save, load, sample, cluster, map, draw."
    device, sde, dataset = (
        "cpu",
        VESDETerms(sigma_max=1.0, device="cpu"),
        CircleDataset(60_000, seed=9),
    )
    subset = create_subset(dataset, 9, 9)
    loader = DataLoader(subset, batch_size=min(500, 9), shuffle=True)
    patterns = subset.dataset[subset.indices]
    torch.manual_seed(9)
    ema = train_loop(loader, sde, 20, 1e-4, device=device)
    torch.manual_seed(9)
    again = train_loop(loader, sde, 20, 1e-4, device=device)
    x, t = torch.randn(50, 2), torch.rand(50)
    with torch.no_grad():
        assert torch.equal(ema(x, t), again(x, t))  # the global seed decides
    torch.save(ema.state_dict(), tmp_path / "model.pth")
    loaded = ScoreNet(marginal_prob_std=sde.marginal_prob_std)
    loaded.load_state_dict(torch.load(tmp_path / "model.pth"))
    with torch.no_grad():
        assert torch.equal(ema(x, t), loaded(x, t))  # though it was built without naming a form
    samples = Euler_Maruyama_sampler(ema, sde, batch_size=40, device=device).detach().cpu().numpy()
    assert samples.shape == (40, 2) and np.isfinite(samples).all()
    labels, centers = cluster_samples(samples, 2)
    logp = ode_likelihood_with_laplacian(x, ema, sde, device=device, eps=0.15)
    assert to_energy(logp).cpu().numpy().min() == 0
    assert loss_fn(ema, patterns, sde.marginal_prob_std).ndim == 0
    fig, ax = plt.subplots()
    assert (
        plot_combined_landscape(
            fig,
            ax,
            ema,
            sde,
            patterns,
            samples,
            labels,
            centers,
            device=device,
            t_eval=0.15,
            annotate=True,
        ).get_clim()[0]
        == 0
    )
    X, Y = torch.meshgrid(
        torch.linspace(-1.5, 1.5, 20), torch.linspace(-1.5, 1.5, 20), indexing="ij"
    )
    square = torch.stack([X, Y], dim=1)  # the page's stack: (n, 2, m)
    energy, scores = energy_am(square, 20), score_am(square, 20)
    assert (
        energy.reshape(20, 20).shape == (20, 20)
        and scores.shape == (20, 2, 20)
        and energy.min() == 0
    )
    ax3 = fig.add_subplot(projection="3d")
    assert (
        plot_energy_surface_3d(
            fig, ax3, X, Y, energy.reshape(20, 20), view_angle=(60, -60), title="Exact"
        )
        is not None
    )
    plt.close(fig)
