"""The Jacobian of a denoiser: where it is known, its eigenvalues."""
import math
from functools import partial
import torch
from helpers import refused
from amtutorial.digits import SIGMA, digit_images, train_digits
from amtutorial.inside import jacobian_spectrum

def gaussian_score(x, t, scales, sigma):
    "Score of a centred Gaussian with these standard deviations, under noise."
    return -x / (scales**2 + sigma**2 * t)

def test_of_a_gaussian():
    "Each direction keeps the part s² / (s² + σ²t) of a push."
    scales = torch.tensor([3., 0.1, 1., 0.])
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    for t, sigma in (0.3, 1.), (0.01, 4.):
        score = partial(gaussian_score, scales=scales, sigma=sigma)
        found = jacobian_spectrum(score, x, t, sigma)
        kept = scales**2 / (scales**2 + sigma**2 * t)
        assert torch.allclose(found, kept.sort(descending=True).values.expand(5, 4), atol=1e-5)

def test_of_a_network_by_finite_differences():
    xi, t, h = digit_images()[0][:4], 0.002, 1e-2
    model = train_digits(xi, 30)
    v = SIGMA**2 * t
    with torch.no_grad():
        pushed = xi[0] + h * torch.cat([torch.eye(64), -torch.eye(64)])
        D = pushed + v * model(pushed, torch.full((128,), t))
    J = (D[:64] - D[64:]) / (2 * h)
    found = jacobian_spectrum(model, xi[:1], t, SIGMA)[0]
    wanted = torch.linalg.eigvalsh((J + J.T) / 2).flip(0)
    assert torch.allclose(found, wanted, atol=0.01 * wanted.abs().max())

def test_bad_input_is_refused():
    score = partial(gaussian_score, scales=torch.ones(2), sigma=1.)
    x = torch.zeros(3, 2)
    assert refused(jacobian_spectrum, score, x[0], 0.1).startswith("ValueError: x")
    assert refused(jacobian_spectrum, score, x * math.nan, 0.1).startswith("ValueError: x")
    assert refused(jacobian_spectrum, score, x, 1.5).startswith("ValueError: t")
    assert refused(jacobian_spectrum, score, x, 0.1, 0.).startswith("ValueError: sigma")
