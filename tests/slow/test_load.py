"""Large inputs: how much memory each takes above its own, and whether a thousand calls leave any.

Every case runs in a process of its own. Its bound is counted, not tried: so many numbers of 8
bytes for every point or memory, the tables of one block (`by_rows` in amtutorial/core.py says how
large one is), and 16 MB for Python, the allocator and what first calls load.
"""

import json
import math
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import ROOT, call

from amtutorial.circle import energy_am, score_am
from amtutorial.data import circle_patterns, merge_patterns
from amtutorial.decision import agreement
from amtutorial.hopfield import dense_am_energy, diffusion_energy, hopfield_energy
from amtutorial.minima import grid_minima
from amtutorial.retrieval import hopfield_update, retrieve
from amtutorial.sampling import Euler_Maruyama_sampler, memory_shares
from amtutorial.scorenet import ScoreNet
from amtutorial.sde import VESDETerms, marginal_logp, marginal_score, posterior_weights

STATUS = Path("/proc/self/status")
MB, SPARE, SDE = 1e6, 16, VESDETerms(1.0)


def seeded():
    return torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=seeded())


def exact(xi):
    return partial(marginal_score, patterns=xi)


def network():
    with torch.random.fork_rng(devices=[]):
        return ScoreNet(marginal_prob_std=SDE.marginal_prob_std)


def table(K, d=2):
    "Numbers of one block's tables: distances, exponents, their softmax, and one on its way."
    return 4 * (max(2**17, K) if d <= 8 else max(2**20, 256 * K))


# What is tried. Each makes inputs of n rows, and gives what to do with them, one thing after the
# other, and how many numbers above the inputs are allowed


def points(n, K=9):
    """Points in double (2), β (1), its checks (1), results in double (2) and handed back (1), one
    more for what is looked through for NaN."""
    x, xi = normal(n, 2), normal(K, 2)
    calls = [
        lambda: marginal_score(x, 0.3, xi), lambda: marginal_logp(x, 0.3, xi),
        lambda: hopfield_energy(x, xi, 3.0), lambda: dense_am_energy(x, xi, 3.0),
        lambda: diffusion_energy(x, 0.3, xi), lambda: hopfield_update(x, xi, 3.0)]
    return calls, 8 * n + table(K)


def points_and_many_patterns(n):
    "As before: a table of points by memories would be ten times as large as this bound."
    calls, allowed = points(n, 144)
    return calls[:1] + calls[-1:], allowed


def weights(n):
    "The result is a table, of 9 single-precision numbers a point; five of them on the way."
    x, xi = normal(n, 2), circle_patterns(9)
    return [lambda: posterior_weights(x, 0.3, xi)], 5 * 9 * n // 2


def ring(n):
    "x, y, R, z, two Bessel functions, their ratio, 1/z, the series (3), the push (3), results (4)."
    x = normal(n, 2)
    return [lambda: energy_am(x, 3.0), lambda: score_am(x, 3.0)], 18 * n


def gradients(n):
    "Of each block its points, variances, log p and gradient are kept, and what joins them: 12."
    x, xi = normal(n, 2).requires_grad_(), circle_patterns(9)
    return [lambda: torch.autograd.grad(marginal_logp(x, 0.3, xi).sum(), x)], 16 * n + table(9)


def recall(n):
    """States (2), a copy, those that are on their way, new ones, both again and the difference
    (2 each), lengths, steps and two lists of rows (1 each)."""
    x, xi = normal(n, 2), circle_patterns(9)
    return [lambda: retrieve(x, xi, 6.0, max_steps=5)], 20 * n + table(9)


def patterns(n):
    "Memories in double (2) and their columns (2); a table has one row."
    x, xi = normal(50, 2), normal(n, 2)
    return [
        lambda: marginal_score(x, 0.3, xi), lambda: hopfield_energy(x, xi, 3.0),
        lambda: retrieve(x, xi, 3.0, max_steps=3), lambda: agreement(0.3, xi, n=50),
    ], 8 * n + table(n)


def patterns_in_16_dimensions(n):
    "Memories in double, without their centre, and squared; blocks have 256 rows."
    x, xi = normal(256, 16), normal(n, 16)
    return [lambda: dense_am_energy(x, xi, 3.0)], 4 * 16 * n + table(n, 16)


def merged(n):
    """Scattered, or, as the worst case, an eighth of them at one place: all pairs, a million at
    a time, of three numbers each, in five forms from list to graph."""
    xi, alike = torch.rand(n, 2, generator=seeded()), torch.ones(n // 8, 2)
    return [lambda: merge_patterns(xi), lambda: merge_patterns(alike)], 30 * n + 15 * 2**20


def samples(n):
    "States, noise, score and drift of two single-precision numbers, old and new."
    xi = circle_patterns(9)
    given = dict(device="cpu", patterns=xi, generator=seeded())
    return [lambda: Euler_Maruyama_sampler(exact(xi), SDE, n, 20, **given)], 8 * n + table(9)


def samples_of_a_network(n):
    "A layer's input, its linear map, the activation, one more; 130 single-precision numbers each."
    given = dict(device="cpu", generator=seeded())
    return [lambda: Euler_Maruyama_sampler(network(), SDE, n, 3, **given)], 4 * 65 * n + 8 * n


def shares(n):
    "Samples in double and with their tree's distances and places, twice; counts."
    x, xi = normal(n, 2), normal(n // 10, 2)
    return [lambda: memory_shares(x, xi)], 16 * n


def landscape(n):
    """Grid, points, energies, scores, results (20). For the minima four pairs a point: two indices
    each, their basins and heights, and all once more where they are joined or sorted (40)."""
    from amtutorial.landscape import compute_landscape

    side, xi = math.isqrt(n), circle_patterns(2)
    work = lambda: compute_landscape(exact(xi), SDE, xi, 0.5, resolution=side)
    return [work], 60 * n + 4 * table(2)


def noise(n):
    "Four pairs a point (40); every ninth point is a minimum, of some 1,400 bytes in sets (20)."
    energy = normal(math.isqrt(n), math.isqrt(n)).numpy()
    return [lambda: grid_minima(energy)], 60 * n


CASES = {
    "10⁶ points, log p, score, energies, update": (points, 10**6),
    "10⁶ points by 144 patterns": (points_and_many_patterns, 10**6),
    "10⁶ points, posterior weights": (weights, 10**6),
    "10⁶ points, energy and score of the circle": (ring, 10**6),
    "10⁶ points, gradient of log p": (gradients, 10**6),
    "10⁶ points, recall": (recall, 10**6),
    "10⁵ patterns in the plane": (patterns, 10**5),
    "10⁵ patterns in 16 dimensions": (patterns_in_16_dimensions, 10**5),
    "10⁵ patterns, merged": (merged, 10**5),
    "10⁵ samples of the exact score": (samples, 10**5),
    "10⁵ samples of a network": (samples_of_a_network, 10**5),
    "10⁵ samples, shares": (shares, 10**5),
    "1000 × 1000 landscape": (landscape, 10**6),
    "1000 × 1000 map of noise": (noise, 10**6),
}


def resident(name):
    "Megabytes that this process holds now (VmRSS) or held at most (VmHWM)."
    line = next(s for s in STATUS.read_text().splitlines() if s.startswith(name))
    return int(line.split()[1]) * 1024 / MB


def measure(name):
    "Prints megabytes above the inputs at the peak, and how many are allowed."
    make, n = CASES[name]
    for call_ in make(2500)[0]:  # what first calls load stays in memory
        call_()
    calls, numbers = make(n)
    before = resident("VmRSS")
    try:  # the peak so far is forgotten where the system allows it, else it counts
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    for call_ in calls:
        call_()
    print(json.dumps([resident("VmHWM") - before, SPARE + 8 * numbers / MB]))


def in_a_process(code):
    "What the last line of a process of its own says."
    env = dict(os.environ, OMP_NUM_THREADS="1", TQDM_DISABLE="1", MPLBACKEND="agg")
    env["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "slow")))
    return json.loads(call("-c", f"import test_load\n{code}", env=env).splitlines()[-1])


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc to read the memory of a process from")
@pytest.mark.parametrize("name", CASES)
def test_peak_memory(name, record_property):
    peak, allowed = in_a_process(f"test_load.measure({name!r})")
    record_property(f"figure:peak memory, {name}", f"{peak:.0f} MB of {allowed:.0f}")
    assert peak < allowed


# A thousand calls


def one_of_each():
    "Whatever the library does on few points, once: tables, blocks, gradients, threads, training."
    from amtutorial.landscape import compute_landscape
    from amtutorial.training import train_loop

    x, xi, model = normal(2000, 2), circle_patterns(9), network()
    rows, many, three = x.clone().requires_grad_(), xi.repeat(20, 1), circle_patterns(3)

    def once(i):
        marginal_score(x, 0.3, xi)
        torch.autograd.grad(marginal_logp(rows, 0.3, many).sum(), rows)
        hopfield_energy(x, xi, 3.0), energy_am(x, 3.0), score_am(x, 3.0)
        retrieve(x, xi, 3.0, max_steps=2)
        memory_shares(x, xi)
        agreement(0.3, xi, n=100, seed=i)
        Euler_Maruyama_sampler(model, SDE, 100, 2, "cpu", generator=seeded())
        if i % 10 == 0:
            compute_landscape(exact(three), SDE, three, 0.5, resolution=40)
            train_loop(xi, SDE, 2, seed=0, device="cpu")
    return once


def growth(calls):
    "Prints by how many megabytes so many calls grow the process, after a tenth as many."
    once = one_of_each()
    for i in range(calls // 10):
        once(i)
    before = resident("VmRSS")
    for i in range(calls):
        once(i)
    print(json.dumps(resident("VmRSS") - before))


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc to read the memory of a process from")
def test_a_thousand_calls_leave_nothing_behind(record_property):
    "One array of 2,000 points in single precision, left by each, would be 16 MB; 12 are allowed."
    grown = in_a_process("test_load.growth(1000)")
    record_property("figure:growth over 1,000 calls", f"{grown:.1f} MB of 12")
    assert grown < 12
