"""The energies of chapter 4: digits, memory, gradients of every order, and what is refused."""
import math
import mpmath
import numpy as np
import pytest
import torch
from helpers import refused
from numpy.testing import assert_allclose
from torch.utils._python_dispatch import TorchDispatchMode
from amtutorial.hopfield import dense_am_energy, diffusion_energy, hopfield_energy, in_double
from amtutorial.sde import marginal_logp, marginal_score

def normal(seed):
    "A source of standard normal doubles."
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)

def gradient(f, x, **kwargs):
    return torch.autograd.grad(f(x).sum(), x, **kwargs)[0]

# the plain formulas, as a student would write them
def plain_hopfield(x, xi, beta): # β of shape (B,)
    return -torch.logsumexp(beta[:, None] * (x @ xi.T), -1) / beta + x.square().sum(-1) / 2

def plain_dense(x, xi, beta):
    distance2 = (x[:, None] - xi).square().sum(-1)
    return -torch.logsumexp(-beta[:, None] * distance2, -1) / beta

PAIRS = [(hopfield_energy, plain_hopfield), (dense_am_energy, plain_dense)]

@pytest.mark.parametrize("d", [1, 2, 16, 256])
def test_gradients_have_closed_forms(d): # (4.4), a β of its own for every state, σ ≠ 1
    randn, sigma = normal(3), 0.8
    xi, x = randn(20, d), randn(30, d).requires_grad_()
    t = torch.linspace(0.01, 1, 30, dtype=torch.float64)
    beta = 1 / (2 * sigma**2 * t)
    w_dot = torch.softmax(beta[:, None] * x @ xi.T, -1)
    w_distance = torch.softmax(-beta[:, None] * (x[:, None] - xi).square().sum(-1), -1)
    score = marginal_score(x, t, xi, sigma)
    cases = [
        (lambda x: hopfield_energy(x, xi, beta), x - w_dot @ xi),
        (lambda x: dense_am_energy(x, xi, beta), 2 * (x - w_distance @ xi)),
        (lambda x: diffusion_energy(x, t, xi, sigma), -2 * sigma**2 * t[:, None] * score)]
    for energy, closed in cases: # sums of at most 256 products, each good to 1e-16 of its size
        assert (gradient(energy, x) - closed).norm() < 1e-12 * closed.norm()

def exact_energies(x, xi, beta):
    "Equations 4.1 and 4.2 in mpmath's precision."
    number = mpmath.mpf
    x, xi, beta = [number(v) for v in x], [[number(v) for v in row] for row in xi], number(beta)
    dot = [mpmath.fdot(x, row) for row in xi]
    distance2 = [mpmath.fsum((a - c)**2 for a, c in zip(x, row)) for row in xi]
    log_sum = lambda terms: mpmath.log(mpmath.fsum(mpmath.exp(v) for v in terms))
    hopfield = -log_sum([beta * s for s in dot]) / beta + mpmath.fdot(x, x) / 2
    return hopfield, -log_sum([-beta * s for s in distance2]) / beta

@pytest.mark.parametrize("d", [3, 12])
@pytest.mark.parametrize("dtype, eps, most", [
    (torch.float64, 2.**-53, 10), # ten rounding errors of a double
    (torch.float32, 2.**-24, 1.01)]) # one: only handing the result back is in single precision
def test_eighteen_decades_against_40_digits(dtype, eps, most, d):
    randn = normal(4)
    xi, x = randn(7, d).to(dtype), randn(4, d).to(dtype)
    widest = (x.double()[:, None] - xi).square().sum(-1).max().item()
    for beta in 10.**np.arange(-6, 13):
        got = torch.stack([f(x, xi, beta) for f in (hopfield_energy, dense_am_energy)], 1)
        assert got.dtype == dtype and torch.isfinite(got).all()
        with mpmath.workdps(40):
            exact = [exact_energies(row, xi.tolist(), beta) for row in x.tolist()]
        want = np.array([[float(e) for e in row] for row in exact])
        scale = math.log(7) / beta + widest # offset and distances may cancel
        assert np.abs(got.double().numpy() - want).max() / scale / eps < most, beta

@pytest.mark.parametrize("beta", [1e-6, 1., 1e12])
def test_gradient_in_single_precision_is_not_hurt_by_the_offset(beta):
    randn = normal(5)
    xi, x = randn(7, 2).float(), randn(5, 2).float().requires_grad_()
    energy = lambda x: dense_am_energy(x, xi, beta)
    error = gradient(energy, x) - gradient(energy, x.detach().double().requires_grad_())
    assert error.abs().max() < 2**-24 * 8 # the components are below 8

class Largest(TorchDispatchMode):
    "Watches every tensor that is made, and keeps the size of the largest."
    size = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for o in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(o, torch.Tensor):
                self.size = max(self.size, o.numel())
        return out

@pytest.mark.parametrize("energy, sign", [(hopfield_energy, 0), (dense_am_energy, 1)])
def test_memory_is_bounded(energy, sign): # a table of 10 million entries never exists
    randn = normal(6)
    many, x, largest = randn(100_000, 2), randn(100, 2), {}
    for n in 20, 100:
        with Largest() as seen:
            found = gradient(lambda x: energy(x, many, 2.), x[:n].clone().requires_grad_())
        largest[n] = seen.size
    assert largest[100] <= 2**20 and largest[20] == largest[100] # no growth with the states
    some = x[::25]
    exponent = -2 * (some[:, None] - many).square().sum(-1) if sign else 2 * some @ many.T
    closed = (1 + sign) * (some - torch.softmax(exponent, -1) @ many)
    assert_allclose(found[::25], closed, rtol=0, atol=1e-12)

@pytest.mark.parametrize("d", [2, 12]) # 40 and 3 blocks
def test_blocks_give_the_plain_energy_and_every_gradient(d):
    randn = normal(7)
    K, n = (20_000, 240) if d == 2 else (2000, 1500)
    xi, x, beta = randn(K, d), randn(n, d), 1 + randn(n).abs()
    weight = randn(n)
    for energy, plain in PAIRS:
        results = []
        for f in energy, plain:
            inputs = [a.clone().requires_grad_() for a in (x, xi, beta)]
            value = f(*inputs)
            results.append([value.detach(), *torch.autograd.grad(value @ weight, inputs)])
        for got, want in zip(*results): # value; gradients in states, memories and β
            assert_allclose(got, want, rtol=1e-10, atol=1e-12)

def test_second_derivatives_across_blocks():
    randn = normal(8)
    xi, x = randn(30_000, 2), randn(12, 2).requires_grad_() # three blocks of four rows
    beta = torch.linspace(1, 4, 12, dtype=torch.float64)
    for energy, plain in PAIRS:
        curvatures = []
        for f in energy, plain:
            first = gradient(lambda x: f(x, xi, beta), x, create_graph=True)
            rows = [torch.autograd.grad(first[:, i].sum(), x, retain_graph=True)[0] for i in (0, 1)]
            curvatures.append(torch.stack(rows, 1))
        assert_allclose(*curvatures, rtol=1e-10, atol=1e-12)
        by_func = torch.func.hessian(lambda x: energy(x, xi, beta).sum())(x.detach())
        diagonal = by_func.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        assert_allclose(diagonal, curvatures[1], rtol=1e-10, atol=1e-12)

def test_conventions(): # (4.5) and (4.12), for the norms 1 and 3
    randn, sigma = normal(9), 0.7
    for d in 2, 16, 256:
        t = torch.linspace(0.02, 1, 30, dtype=torch.float64)
        xi = torch.nn.functional.normalize(randn(20, d))
        x = xi[torch.arange(30) % 20] + sigma * t.sqrt()[:, None] * randn(30, d)
        for norm in 1, 3:
            y, eta, beta = norm * x, norm * xi, 1 / (sigma**2 * t)
            hopfield = hopfield_energy(y, eta, beta)
            diffusion = diffusion_energy(y, t, eta, sigma)
            assert_allclose(diffusion / 2, hopfield + norm**2 / 2, rtol=1e-12, atol=1e-11)
            assert_allclose(dense_am_energy(y, eta, beta / 2), diffusion, rtol=1e-12, atol=1e-11)
            constant = math.log(20) + d / 2 * torch.log(2 * math.pi * sigma**2 * t)
            nats = beta / 2 * diffusion + constant
            assert_allclose(-marginal_logp(y, t, eta, sigma), nats, rtol=1e-12, atol=1e-10)

def test_sigma_counts():
    x, xi = torch.tensor([[0.5, 0.2]]), torch.eye(2)
    assert_allclose(diffusion_energy(x, 0.4, xi, sigma=0.5), diffusion_energy(x, 0.1, xi))
    assert abs(diffusion_energy(x, 0.4, xi, sigma=0.5) - diffusion_energy(x, 0.4, xi)) > 0.1

def test_lists_arrays_and_shapes():
    x, xi = normal(10)(100, 2), normal(11)(5, 2)
    for energy in hopfield_energy, dense_am_energy:
        grid = energy(x.numpy().reshape(20, 5, 2), xi.tolist(), 2.)
        assert grid.shape == (20, 5)
        many = energy(x, xi, torch.full((100,), 2.))
        assert_allclose(grid.flatten(), many, rtol=0, atol=1e-6) # lists become float32
        assert energy(x[0], xi, 2.).shape == ()
        assert energy(x.float(), xi, 2.).dtype == torch.float32
    assert diffusion_energy(x.reshape(20, 5, 2), torch.full((20, 5), 0.3), xi).shape == (20, 5)
    assert in_double(lambda x, xi, beta: x * beta, x.reshape(20, 5, 2), xi, 3.).shape == (20, 5, 2)

@pytest.mark.parametrize("energy", [hopfield_energy, dense_am_energy])
def test_energies_refuse(energy):
    x, xi = torch.zeros(3, 2), torch.zeros(4, 2)
    message = refused(energy, x, xi, 0.)
    assert message == "ValueError: beta must be finite and above 0, not 0"
    message = refused(energy, x, xi, "cold")
    assert message == "TypeError: beta must be a number or a tensor of numbers, not 'cold'"
    message = refused(energy, x[:2], xi, torch.tensor([1., -2.]))
    assert message == "ValueError: beta must be finite and above 0, not -2 to 1"
    message = refused(energy, x, xi, torch.ones(5))
    assert message == "ValueError: beta of shape (5,) does not fit points of shape (3, 2)"
    message = refused(energy, torch.zeros(3, 3), xi, 1.)
    assert message == "ValueError: x must have 2 coordinates on its last axis, not shape (3, 3)"
    for beta in True, float("nan"), float("inf"), torch.tensor([]), 1j:
        assert "beta must" in refused(energy, x, xi, beta)
    assert "patterns" in refused(energy, x, torch.zeros(2), 1.)
    assert "finite" in refused(energy, x / 0, xi, 1.)

def test_diffusion_energy_refuses():
    x, xi = torch.zeros(3, 2), torch.zeros(4, 2)
    assert refused(diffusion_energy, x, 2., xi) == "ValueError: t must lie in (0, 1], not 2"
    assert "t must" in refused(diffusion_energy, x, 0., xi)
    message = refused(diffusion_energy, x, .5, xi, sigma=0)
    assert message == "ValueError: sigma must be finite and above 0, not 0"
