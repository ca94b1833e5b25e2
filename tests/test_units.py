"""No hidden unit, no hidden centre: the same problem in other units has the same answer.

After public reports k-diffusion 10, beso 3 and score_sde 2, in inputs of our own.
"""
import math
from functools import partial

import pytest
import torch
from helpers import seeded

from amtutorial.data import circle_patterns, merge_patterns, unit_of
from amtutorial.sampling import Euler_Maruyama_sampler, memory_shares, suited_grid
from amtutorial.scorenet import ScoreNet
from amtutorial.sde import T_MIN, VESDETerms, marginal_score
from amtutorial.training import score_error, train_loop, trained_model

NINE = circle_patterns(9)


@pytest.mark.parametrize("scale", [1e-6, 0.01, 0.2, 5.0, 50.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_unit(scale, shift):
    "It scales with the memories and does not see where they are; to rounding of the shift."
    x = NINE.double()
    unit = (2 * (x - x.mean(0)).square().mean()).sqrt().item()
    assert math.isclose(unit_of(scale * (x + shift)), scale * unit, rel_tol=1e-9)


@pytest.mark.parametrize("K", [9, 32, 1000])
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_about_one_is_one(K, scale):
    assert unit_of(scale * circle_patterns(K)) == 1


def test_units_of_a_single_place():
    "Its unit is the noise, which is handed over; rounding of a far-off place is no spread."
    for place in torch.zeros(1, 2), torch.full((1, 2), 7.0), torch.full((5, 3), 1e6):
        assert unit_of(place, 0.5) == 1 and unit_of(place, 9.0) == 9 and unit_of(place) == 1


def test_groups_do_not_depend_on_the_unit():
    "The twins of our nine are 0.0014 apart: one place in every unit, wherever the origin is."
    for scale in 1e-3, 1.0, 50.0:
        assert len(merge_patterns(scale * NINE.double())[0]) == 8
        assert len(merge_patterns(scale * (NINE.double() + 100))[0]) == 8


def test_suited_grid():
    "The usual one up to sigma = u; beyond, the last noise stays 0.003 u, and the spacing."
    assert suited_grid(1.0) == suited_grid(5.0, 5.0) == suited_grid(2.0, 0.1) == (50, T_MIN)
    for unit, sigma in (1.0, 32.0), (0.01, 0.32), (100.0, 3200.0):
        steps, eps = suited_grid(unit, sigma)
        assert math.isclose(sigma * math.sqrt(eps), unit * math.sqrt(T_MIN))
        assert steps == 200  # 32^(2/5) = 4


@pytest.mark.parametrize("sigma", [25.0, 50.0])
def test_loud_noise_by_default_steps(sigma):
    "Samples end on the memories, in their shares; fifty steps to 1e-5 end up to 0.05 away."
    score = partial(marginal_score, patterns=NINE, sigma=sigma)
    x = Euler_Maruyama_sampler(
        score, VESDETerms(sigma), 4000, patterns=NINE, device="cpu", generator=seeded())
    found = memory_shares(x, NINE)
    assert found["distance"] < 1e-3  # the last noise is 0.003 wide, and is taken off
    # the steps' bias of 0.007, the floor, and five times its scatter
    assert found["total_variation"] < 0.007 + 2.4 * found["floor"]


@pytest.mark.parametrize("scale, shift", [(0.01, 0.0), (50.0, 0.0), (1.0, 100.0), (1e-3, 0.01)])
def test_training_in_another_unit(scale, shift):
    "Score error and shares as on the unit circle: below 0.01 (without a unit 7.9; of zero 1.25)."
    xi, sde = scale * NINE + shift, VESDETerms(scale)
    model = train_loop(xi, sde, 400, device="cpu", seed=9)
    assert score_error(model, xi, scale, n=4000) < 0.01
    found = memory_shares(Euler_Maruyama_sampler(model, sde, 2000, generator=seeded()), xi)
    assert found["total_variation"] < 0.03 + 2.4 * found["floor"]
    assert found["distance"] < 0.02 * scale


def test_the_unit_circle_keeps_its_numbers():
    "Unit 1 and centre 0 change no bit of a network's answer."
    model = train_loop(NINE, VESDETerms(1.0), 5, device="cpu", seed=9)
    assert model.unit == 1 and not model.center.any()
    x, t = torch.randn(50, 2, generator=seeded()), torch.rand(50, generator=seeded(1))
    with torch.no_grad():
        v = t[:, None].sqrt() ** 2
        time = 1 - t.log() / math.log(T_MIN)
        by_hand = (model.layers(x / (v + 0.01).sqrt(), time) - x) / v
        assert torch.equal(model(x, t), by_hand)


def test_unit_and_centre_by_hand():
    "Equation 9.3, written out; and both travel with the weights."
    sde = VESDETerms(3.0)
    xi = 10 * NINE + 100
    model = train_loop(xi, sde, 2, device="cpu", seed=9)
    u, c = unit_of(xi), xi.mean(0)
    assert torch.allclose(model.unit, torch.tensor(u)) and torch.allclose(model.center, c)
    x, t = c + 20 * torch.randn(50, 2, generator=seeded()), torch.rand(50, generator=seeded(1))
    with torch.no_grad():
        v = 9 * t[:, None]
        r = c + u * model.layers((x - c) / (v + 0.01 * u * u).sqrt(), 1 - t.log() / math.log(T_MIN))
        # coordinates of 100 have a rounding of 1e-5, and v may be small
        assert torch.allclose(model(x, t) * v, r - x, atol=1e-3)
        other = ScoreNet(marginal_prob_std=sde.marginal_prob_std, readout=True)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(x, t), model(x, t))


def test_a_checkpoint_without_unit_has_the_unit_one():
    model = train_loop(0.01 * NINE, VESDETerms(0.01), 2, device="cpu", seed=9)
    state = model.state_dict()
    older = {name: v for name, v in state.items() if name not in ("unit", "center")}
    other = ScoreNet(marginal_prob_std=model.marginal_prob_std, readout=True)
    other.load_state_dict(state)
    assert other.unit == model.unit != 1
    other.load_state_dict(older)
    assert other.readout and other.unit == 1 and not other.center.any()
    assert torch.equal(other.data_cov, model.data_cov)


def test_smallest_time_of_training():
    "By default the one that suits; or the one that is handed over."
    loud = VESDETerms(50.0)
    usual, short = (train_loop(NINE, loud, 3, device="cpu", seed=1, eps=e) for e in (None, T_MIN))
    by_hand = train_loop(NINE, loud, 3, device="cpu", seed=1, eps=suited_grid(1.0, 50.0)[1])
    assert torch.equal(usual.output.weight, by_hand.output.weight)
    assert not torch.equal(usual.output.weight, short.output.weight)


def test_the_published_form_stays():
    "Its layers see points and times as they are."
    model = train_loop(0.01 * NINE, VESDETerms(0.01), 2, device="cpu", seed=9, readout=False)
    x, t = torch.randn(5, 2), torch.rand(5)
    with torch.no_grad():
        assert torch.equal(model(x, t), model.layers(x, t) / (0.01 * t.sqrt())[:, None])


def test_units_in_the_cache(monkeypatch, tmp_path):
    "A network read from the cache brings its unit along."
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(tmp_path))
    first, again = (trained_model(0.01 * NINE, 0.01, iterations=2, device="cpu") for _ in range(2))
    assert first.unit == again.unit != 1


def test_units_near_one_share_the_usual_steps():
    "By default the sampler takes fifty steps to 1e-5 for memories of about the size of one."
    for scale in 0.5, 1.0, 3.0:
        xi, sde = scale * NINE, VESDETerms(0.5)
        score = partial(marginal_score, patterns=xi, sigma=sde.sigma)
        usual, named = (
            Euler_Maruyama_sampler(score, sde, 9, *how, patterns=xi, generator=seeded())
            for how in ((None, "cpu"), (50, "cpu", T_MIN))
        )
        assert torch.equal(usual, named)
