"""The network: its embedding, its layers, its two forms, and what it refuses."""

import math

import pytest
import torch
from helpers import refused
from numpy.testing import assert_allclose

from amtutorial.scorenet import FourierEmbedding, ScoreNet
from amtutorial.sde import T_MIN, VESDETerms, marginal_score

std = VESDETerms(1.0).marginal_prob_std


def network(seed=0, **options):
    torch.manual_seed(seed)
    return ScoreNet(marginal_prob_std=std, **options)


def perturbed(model):
    "With every weight moved: a fresh normalization has weights of one and would hide mistakes."
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return model


# The embedding


def test_embedding_shape_and_refusals():
    assert FourierEmbedding(200)(torch.rand(3, 4)).shape == (3, 4, 200)
    for bad in 7, 0:
        wanted = f"ValueError: embed_dim must be even and at least 2, not {bad}"
        assert refused(FourierEmbedding, bad) == wanted


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_embedding_kernel(scale):
    "Overlap of two times: a Gaussian; 10^5 frequencies know it to 0.0022, five of those allowed."
    torch.manual_seed(0)
    embedding = FourierEmbedding(200_000, scale=scale)
    lag = torch.tensor([0.0, 0.05, 0.1, 0.2])
    kernel = embedding(lag) @ embedding(torch.zeros(1))[0] / 100_000
    expected = torch.exp(-2 * (math.pi * scale * lag) ** 2)
    assert_allclose(kernel, expected, rtol=0, atol=5 * 0.0022)


def test_embedding_is_cosines_then_sines_of_its_frequencies():
    embedding, t = FourierEmbedding(6, scale=3.0).double(), torch.rand(5).double()
    angle = 2 * math.pi * t[:, None] * embedding.freqs
    assert_allclose(embedding(t), torch.cat([angle.cos(), angle.sin()], 1), rtol=0, atol=1e-12)


def test_scale_of_the_embedding_by_form():
    "A thousand frequencies know their spread to 1/√2000 of itself; five of those allowed."
    for readout, scale in (False, 16), (True, 4):
        freqs = network(readout=readout, embed_dim=2000).time_embed[0].freqs
        assert abs(freqs.std() / scale - 1) < 5 / math.sqrt(2 * 1000)


# The layers

SHAPES = {
    "time_embed.1": (128, 128),
    "time_embed.3": (128, 128),
    "input_proj": (128, 130),
    "hidden.0": (128, 128),
    "hidden.2": (128, 128),
    "hidden.4": (128, 128),
    "hidden.5": (128,),
    "output": (2, 128),
}


def test_published_names_and_shapes():
    found = {name: tuple(p.shape) for name, p in network().named_parameters()}
    expected = {f"{name}.weight": shape for name, shape in SHAPES.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in SHAPES.items()}
    assert found == expected
    count = sum(math.prod(shape) for shape in found.values())
    assert count == 5 * 128**2 + 130 * 128 + 8 * 128 + 2 * 128 + 2 == 99_842


def by_hand(w, x, t, readout=False, sigma=1.0):
    "The network written out from its description, one matrix after the other."
    silu = lambda a: a * torch.sigmoid(a)
    linear = lambda a, name: a @ w[name + ".weight"].T + w[name + ".bias"]
    variance = sigma**2 * t[:, None]
    point, time = x, t
    if readout:
        point, time = x / (variance + 0.01).sqrt(), 1 - t.log() / math.log(1e-5)
    wave = time[:, None] * (2 * math.pi * w["time_embed.0.freqs"])
    e = torch.cat([wave.cos(), wave.sin()], 1)
    e = silu(linear(silu(linear(e, "time_embed.1")), "time_embed.3"))
    h = linear(torch.cat([point, e], 1), "input_proj")
    h = linear(silu(linear(silu(linear(h, "hidden.0")), "hidden.2")), "hidden.4")
    h = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    h = silu(h * w["hidden.5.weight"] + w["hidden.5.bias"])
    out = linear(h, "output")
    return (out - x) / variance if readout else out / variance.sqrt()


def test_published_form_by_hand():
    "Both agree to single-precision rounding, on outputs of order one."
    model, x, t = network(), torch.randn(500, 2), 0.05 + 0.95 * torch.rand(500)
    with torch.no_grad():
        assert_allclose(model(x, t), by_hand(model.state_dict(), x, t), rtol=0, atol=1e-6)


@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_both_forms_by_hand_in_double_precision(readout, sigma):
    sde = VESDETerms(sigma)
    model = ScoreNet(marginal_prob_std=sde.marginal_prob_std, readout=readout)
    model = perturbed(model).double()
    x, t = torch.randn(50, 2).double(), T_MIN ** torch.rand(50).double()
    expected = by_hand(model.state_dict(), x, t, readout, sigma)
    with torch.no_grad():
        assert_allclose(model(x, t), expected, rtol=1e-9, atol=1e-9)


def test_other_sizes():
    model = network(input_dim=7, num_layers=2, hidden_dim=32, embed_dim=16)
    assert model(torch.randn(3, 7), torch.rand(3)).shape == (3, 7)
    assert [type(layer).__name__ for layer in model.hidden] == ["Linear", "LayerNorm", "SiLU"]
    assert sum(isinstance(a, torch.nn.Linear) for a in network(num_layers=6).hidden) == 5


@pytest.mark.parametrize("readout", [False, True])
def test_points_may_share_their_time(readout):
    "One time for all points, one for each, one for each row of a table: the same scores."
    model, x = network(readout=readout), torch.randn(500, 2)
    t = 0.05 + 0.95 * torch.rand(500)
    with torch.no_grad():
        one, same = model(x, torch.tensor(0.3)), model(x, torch.full((500,), 0.3))
        assert_allclose(one, same, rtol=0, atol=2e-6)
        rows = t[:20, None]
        table = model(x.reshape(20, 25, 2), rows).reshape(500, 2)
        each = model(x, rows.repeat_interleave(25))
    # read-out scores reach 1/0.05 times the output's rounding
    assert_allclose(table, each, rtol=0, atol=1e-5 if readout else 1e-6)


# The form


def test_the_form_travels_with_the_weights():
    "A published checkpoint names no form and gets the published one, whatever network loads it."
    model, x, t = network(), torch.randn(20, 2), torch.rand(20)
    ours = "_extra_state", "data_mean", "data_cov", "center", "unit"
    checkpoint = {k: v for k, v in model.state_dict().items() if k not in ours}
    loaded, other = network(1, readout=True), network(2, readout=True)
    loaded.load_state_dict(checkpoint)
    with torch.no_grad():
        assert not loaded.readout and torch.equal(loaded(x, t), model(x, t))
    loaded.load_state_dict(other.state_dict())
    with torch.no_grad():
        assert loaded.readout and torch.equal(loaded(x, t), other(x, t))


def test_the_moments_travel_with_the_weights():
    "Zero before training; saved and loaded with the weights, and cast with them."
    model, other = network(), network(1)
    for m in model, network(input_dim=3):
        d = m.input_dim
        assert m.data_mean.shape == (d,) and m.data_cov.shape == (d, d)
        assert not m.data_mean.any() and not m.data_cov.any()
    model.data_mean, model.data_cov = torch.tensor([0.5, -0.25]), torch.eye(2) / 8
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.data_mean, model.data_mean)
    assert torch.equal(other.data_cov, model.data_cov)
    assert model.double().data_mean.dtype == model.data_cov.dtype == torch.float64
    names = {name for name, _ in model.named_parameters()}
    assert not names & {"data_mean", "data_cov"}  # nothing that an optimizer would move


def test_a_published_checkpoint_names_no_moments():
    "It loads, leaves none behind from before, and is not changed by it."
    model = network()
    ours = "_extra_state", "data_mean", "data_cov", "center", "unit"
    checkpoint = {k: v for k, v in network(1).state_dict().items() if k not in ours}
    model.data_mean, model.data_cov = torch.tensor([0.5, -0.25]), torch.eye(2)
    model.load_state_dict(checkpoint)
    assert not model.data_mean.any() and not model.data_cov.any()
    assert not set(checkpoint) & set(ours)
    x, t = torch.randn(20, 2), torch.rand(20)
    with torch.no_grad():
        assert torch.equal(model(x, t), network(1)(x, t))


@pytest.mark.parametrize("d, sigma", [(1, 1.0), (3, 2.0), (3, 0.5)])
def test_one_memory_is_solved_by_a_constant(d, sigma):
    lone = torch.randn(1, d)
    model = ScoreNet(d, marginal_prob_std=VESDETerms(sigma).marginal_prob_std, readout=True)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(lone[0])
        x, t = torch.randn(100, d), 0.01 + 0.99 * torch.rand(100)
        # scores reach 1/(σ² 0.01) times the rounding of one, 6e-8
        atol = 4 * max(1e-4, 1e-6 / sigma**2 / 0.01)
        assert_allclose(model(x, t), marginal_score(x, t, lone, sigma), rtol=1e-5, atol=atol)


# Types and refusals


@pytest.mark.parametrize("readout", [False, True])
def test_points_and_times_take_the_precision_of_the_network(readout):
    "Points in double precision meet a single-precision network, and the other way round."
    model, x, t = network(readout=readout), torch.randn(20, 2), 0.1 + 0.9 * torch.rand(20)
    with torch.no_grad():
        expected = model(x, t)
        assert_allclose(model(x.double(), t.double()), expected, rtol=1e-5, atol=1e-5)
        assert_allclose(model(x.double(), t), expected, rtol=1e-5, atol=1e-5)
        assert_allclose(model.double()(x, t), expected, rtol=1e-3, atol=1e-3)


def test_refusals():
    wanted = "marginal_prob_std must be a function of t, such as VESDETerms(1.).marginal_prob_std"
    assert refused(ScoreNet) == f"TypeError: {wanted}"
    assert refused(ScoreNet, marginal_prob_std=1.0) == f"TypeError: {wanted}"
    shape = "x must have 2 coordinates on its last axis, not shape (4, 3)"
    assert refused(network(), torch.zeros(4, 3), torch.rand(4)) == f"ValueError: {shape}"
    for name, bad in dict(input_dim=0, hidden_dim=-1, embed_dim=2.5, num_layers=1).items():
        assert name in refused(network, **{name: bad})
    assert refused(network, embed_dim=7).startswith("ValueError: embed_dim must be even")


def test_gradients_reach_every_weight():
    for readout in False, True:
        model = network(readout=readout)
        model(torch.randn(8, 2), torch.rand(8)).square().sum().backward()
        assert all((p.grad != 0).any() for p in model.parameters())
