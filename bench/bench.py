#!/usr/bin/env python3
"""Time every stage beside its plain form, on this machine, in one run.

    python bench/bench.py                # K = 2, 9, 1000; some three minutes on two cores
    python bench/bench.py --sizes 4,30 --sigma 0.5 --repeats 5 --json bench.json
    python bench/bench.py --ablation     # what each part of the training recipe does to the error
    python bench/bench.py --parts        # what each way of computing does to the time
    python bench/bench.py --scale        # how cost grows with points, memories, dimensions, steps

The plain forms are what the published page does, in a few lines of our own: 50,000 steps of Adam
with one time and one draw of noise for each point (timed on a few hundred and scaled), 1,000
Euler-Maruyama steps, and an adaptive solver in t with one Jacobian for each point. Columns: seconds
of the plain form and of ours (median of the repeats), their ratio, our error, and the share of our
time that the matrix products alone would take, at the rate of this machine for this width.
"""

import argparse
import json
import os
import platform
import statistics
import time
from contextlib import nullcontext
from copy import deepcopy
from unittest.mock import patch

os.environ.setdefault("TQDM_DISABLE", "1")
import torch
from scipy.integrate import solve_ivp
from torch.func import jacrev, vmap

from amtutorial import likelihood, sde, training
from amtutorial.core import one_thread
from amtutorial.data import circle_patterns, plane_grid
from amtutorial.likelihood import (
    energy_error,
    ode_likelihood_with_laplacian,
    score_and_divergence,
)
from amtutorial.sampling import Euler_Maruyama_sampler, memory_shares
from amtutorial.scorenet import ScoreNet
from amtutorial.sde import VESDETerms, marginal_logp, marginal_score
from amtutorial.training import score_error, train_loop, update_ema

WIDTH = 128  # of the network's layers
LARGE = 4  # products of (points, WIDTH) by (WIDTH, WIDTH) in a look at the network


# Clocks


def median_time(f, repeats=3):
    "Median seconds of `repeats` calls of f, and the last result."
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = f()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def in_turns(f, g, repeats, n=1):
    "Median seconds of n calls of f and of n calls of g, which take turns."

    def once(h):
        start = time.perf_counter()
        for _ in range(n):
            h()
        return (time.perf_counter() - start) / n

    once(f), once(g)
    pairs = [(once(f), once(g)) for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*pairs)]


def product_rate(rows=1024):
    "Multiply-adds a second in products of (rows, WIDTH) by (WIDTH, WIDTH), on all cores."
    a, w = torch.randn(rows, WIDTH), torch.randn(WIDTH, WIDTH)
    n = max(1, 200_000 // rows)

    def products():
        for _ in range(n):
            a @ w

    products()
    return n * rows * WIDTH**2 / median_time(products, 7)[0]


def training_products(rows, times=32):
    "The matrix products of a training step: forwards, and twice as many on the way back."
    h, e, w = torch.randn(rows, WIDTH), torch.randn(times, WIDTH), torch.randn(WIDTH, WIDTH)
    for x, layers in (h, LARGE), (e, 2):
        for _ in range(layers):
            x @ w
            x @ w
            x.T @ x


# The plain forms


def plain_train(patterns, process, steps):
    "One time and one draw of noise a point, a constant learning rate, an average of the weights."
    model = ScoreNet(marginal_prob_std=process.marginal_prob_std)
    ema = deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for _ in range(steps):
        x = patterns[torch.randperm(len(patterns))[:500]]
        t = torch.rand(len(x)) * (1 - 1e-5) + 1e-5
        z = torch.randn_like(x)
        std = process.marginal_prob_std(t)[:, None]
        loss = (model(x + std * z, t) * std + z).square().mean()
        loss.item()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        update_ema(ema, model)
    return ema.eval()


@torch.no_grad()
def plain_sample(model, process, n, steps=1000):
    "Equal Euler-Maruyama steps from a ring."
    x = process.sigma * torch.nn.functional.normalize(torch.randn(n, 2))
    times = torch.linspace(1, 1e-5, steps + 1)
    for t, s in zip(times[:-1], times[1:]):
        mean = x + process.sigma**2 * model(x, t.expand(n)) * (t - s)
        x = mean + process.sigma * (t - s).sqrt() * torch.randn_like(x)
    return mean


@torch.no_grad()
def plain_energy(model, process, x, t0):
    "Adaptive steps in t, one Jacobian for each point, ending on a Gaussian."
    score = lambda x, t: model(x[None], t[None])[0]
    trace = vmap(lambda x, t: jacrev(score)(x, t).trace())

    def slope(t, y):
        z, times = torch.tensor(y[: x.numel()]).float().view_as(x), torch.full((len(x),), float(t))
        both = torch.cat([model(z, times).ravel(), trace(z, times)])
        return -0.5 * process.sigma**2 * both.double().numpy()

    start = torch.cat([x.ravel(), torch.zeros(len(x))]).numpy()
    y = torch.tensor(solve_ivp(slope, (t0, 1.0), start, rtol=1e-5, atol=1e-5).y[:, -1])
    end, gained = y[: x.numel()].view_as(x), y[x.numel() :]
    return -(gained + marginal_logp(end, 1.0, torch.zeros(1, 2), process.sigma)).float()


# What is measured


def stages(K, sigma, t, repeats, plain_steps, seed):
    "Rows (stage, plain seconds, our seconds, our error, share of the products) for K memories."
    process, xi, grid = VESDETerms(sigma), circle_patterns(K, seed), plane_grid(100)[2]
    train = lambda n: train_loop(xi, process, n, seed=seed, device="cpu")
    plain_train(xi, process, 20), train(20)  # warm up
    slow = median_time(lambda: plain_train(xi, process, plain_steps), 1)[0] * 50_000 / plain_steps
    with one_thread():
        needed, _ = median_time(lambda: training_products(256), 50)
    for n in 200, 1000:
        fast, model = median_time(lambda: train(n), repeats)
        yield f"train, {n:,} steps", slow, fast, score_error(model, xi, sigma), n * needed / fast

    product = WIDTH**2 / product_rate()
    slow, _ = median_time(lambda: plain_sample(model, process, 1500), 1)
    sample = lambda: Euler_Maruyama_sampler(model, process, 1500, patterns=xi, device="cpu")
    fast, x = median_time(sample, repeats)
    distance = memory_shares(x, xi)["distance"]
    yield "1,500 samples", slow, fast, distance, 51 * 1500 * LARGE * product / fast

    slow, _ = median_time(lambda: plain_energy(model, process, grid, t), 1)
    looks = []
    count = lambda *a: looks.append(len(a[1])) or score_and_divergence(*a)
    energy = lambda: ode_likelihood_with_laplacian(grid, model, process, "cpu", t, patterns=xi)
    with patch.object(likelihood, "score_and_divergence", count):
        energy()
    fast, logp = median_time(energy, repeats)
    error = energy_error(-logp, -marginal_logp(grid, t, xi, sigma))
    both = LARGE + 2 * LARGE  # products for a score, and two passes back
    yield "energy, 100 x 100", slow, fast, error, sum(looks) * both * product / fast


def ablation(K, steps=1000):
    "Rows (what is left out, score error) of the training recipe, one part at a time."
    xi, process = circle_patterns(K), VESDETerms(1.0)
    options = {
        "the recipe": {},
        "one draw of noise for each time": dict(times=256, draws=1),
        "draws of the target, not its mean": dict(exact_targets=False),
        "the published network form": dict(readout=False),
        "a quarter of the learning rate": dict(lr=5e-3),
    }
    for name, change in options.items():
        yield name, score_error(train_loop(xi, process, steps, seed=0, device="cpu", **change), xi)


def training_parts(repeats):
    "Rows about the training loop."
    xi, process = circle_patterns(9), VESDETerms(1.0)
    train = lambda: train_loop(xi, process, 100, seed=0, device="cpu")
    adam = torch.optim.Adam
    unfused = lambda *a, fused, **options: adam(*a, **options)

    def each_step(patterns, process, iterations, *rest):
        for i in range(iterations):
            yield from batches(patterns, process, 1, *rest[:-1], i)

    def replaced(where, name, value):
        def run():
            with patch.object(where, name, value):
                return train()

        return run

    all_cores = replaced(training, "one_thread", nullcontext)
    yield "100 training steps on all cores", *in_turns(all_cores, train, repeats)
    batches = training._batches
    yield "batches made step by step", *in_turns(
        replaced(training, "_batches", each_step), train, repeats
    )
    yield "Adam that is not fused", *in_turns(
        replaced(torch.optim, "Adam", unfused), train, repeats
    )

    def products():
        with one_thread():
            for _ in range(100):
                training_products(256)

    yield "their matrix products alone", *in_turns(products, train, repeats)


def network_parts(repeats):
    "Rows about scores, divergences and energies."
    xi, process, t = circle_patterns(9), VESDETerms(1.0), torch.tensor(0.15)
    model = train_loop(xi, process, 200, seed=0, device="cpu")
    grid = plane_grid(100)[2]
    few = grid[::10]
    ours = lambda: score_and_divergence(model, few, t)
    jacobian = vmap(jacrev(lambda x: model(x, t)))
    each = lambda: jacobian(few).diagonal(dim1=1, dim2=2).sum(1)
    with torch.no_grad():
        yield "divergence, a Jacobian a point", *in_turns(each, ours, repeats, 5)
        once, often = lambda: model(few, t), lambda: model(few, t.expand(len(few)))
        yield "a time embedded for each point", *in_turns(often, once, repeats, 20)
    energy = lambda: ode_likelihood_with_laplacian(grid, model, process, "cpu", 0.15, patterns=xi)

    def all_cores():
        with patch.object(likelihood, "map_blocks", map):
            return energy()

    yield "energies, all cores on each operation", *in_turns(all_cores, energy, repeats)
    many, points = circle_patterns(10_000), grid
    blocks = lambda: marginal_score(points, 0.15, many)
    rows = sde.by_rows

    def at_once():
        with patch.object(sde, "by_rows", lambda *a: rows(*a, limit=2**40)):
            return marginal_score(points, 0.15, many)

    yield "exact score of 10,000 memories at once", *in_turns(at_once, blocks, max(1, repeats // 2))


def parts(repeats):
    "Rows (what, seconds of the usual form, seconds of ours), form against form in turns."
    yield from training_parts(repeats)
    yield from network_parts(repeats)


SCORES = [
    *[(1000, 1000, 2), (10_000, 1000, 2), (1000, 10_000, 2), (10_000, 60_000, 2)],
    *[(1000, 10_000, 64), (4000, 10_000, 64), (1000, 10_000, 784), (10_000, 60_000, 784)],
]


def scale(repeats):
    "Rows (what, points, memories, d, steps, seconds, units of work, share of the products)."
    for n, K, d in SCORES:
        x, xi = torch.randn(n, d), torch.randn(K, d)
        score = lambda: marginal_score(x, 0.5, xi)
        seconds, _ = median_time(score, 1 if n * K * d > 1e10 else repeats)
        a, b = torch.randn(256, d), torch.randn(min(K, 10_000), d)
        rate = len(a) * len(b) * d / median_time(lambda: a @ b.T, 9)[0]
        share = 2 * n * K * d / rate / seconds if d > 8 else None
        yield "exact score", n, K, d, 1, seconds, n * K * d, share
    process = VESDETerms(1.0)
    for K, d, steps in (2, 2, 500), (1000, 2, 500), (10_000, 2, 100), (2, 64, 500):
        xi = circle_patterns(K) if d == 2 else torch.randn(K, d)
        train = lambda: train_loop(xi, process, steps, seed=0, device="cpu")
        yield "training", 256, K, d, steps, median_time(train, repeats)[0], 256 * steps, None
    for d in 2, 64:
        model = ScoreNet(d, marginal_prob_std=process.marginal_prob_std, readout=True)
        for n, steps in (1500, 50), (15_000, 50), (1500, 500):
            sample = lambda: Euler_Maruyama_sampler(model, process, n, steps, device="cpu")
            yield "samples", n, None, d, steps, median_time(sample, repeats)[0], n * steps, None
        for n, steps in (2500, 4), (10_000, 4), (10_000, 16):
            x = torch.randn(n, d)
            energy = lambda: ode_likelihood_with_laplacian(
                x, model, process, "cpu", 0.15, steps=steps
            )
            yield "energies", n, None, d, steps, median_time(energy, 1)[0], n * steps, None


# What is printed


def print_stages(a, out):
    head = f"{'plain s':>9}{'ours s':>9}{'faster':>8}{'error':>11}{'products':>10}"
    print(f"{'':10}{'stage':20}{head}")
    total = dict(plain=0.0, ours=0.0)
    for K in a.sizes:
        rows = stages(K, a.sigma, a.t, a.repeats, a.plain_steps, a.seed)
        for stage, slow, fast, error, share in rows:
            times = f"{slow:9.2f}{fast:9.3f}{slow / fast:7.0f}x"
            print(f"K = {K:<6,}{stage:20}{times}{error:11.2e}{share:10.0%}", flush=True)
            row = dict(plain=slow, ours=fast, ratio=slow / fast, error=error, products=share)
            out.setdefault(str(K), {})[stage] = row
            if "200" not in stage:
                total["plain"] += slow
                total["ours"] += fast
    print(f"all stages: {total['plain'] / total['ours']:.0f} times faster")


def print_ablation(a, out):
    for K in a.sizes:
        out[str(K)] = {}
        for name, error in ablation(K):
            print(f"K = {K:5,}  {name:34} {error:.2e}", flush=True)
            out[str(K)][name] = error


def print_parts(a, out):
    print(f"{'':40}{'usual s':>10}{'ours s':>10}{'ratio':>8}")
    for name, usual, ours in parts(a.repeats):
        print(f"{name:40}{usual:10.4f}{ours:10.4f}{usual / ours:8.2f}", flush=True)
        out[name] = dict(usual=usual, ours=ours)


def print_scale(a, out):
    head = f"{'points':>8}{'memories':>10}{'d':>5}{'steps':>7}{'seconds':>10}{'ns per unit':>13}"
    print(f"{'':12}{head}{'products':>10}")
    dash = lambda v, form: "-" if v is None else format(v, form)
    out["rows"] = []
    for what, n, K, d, steps, seconds, work, share in scale(a.repeats):
        size = f"{n:8,}{dash(K, ','):>10}{d:5}{steps:7,}"
        cost = f"{seconds:10.3f}{1e9 * seconds / work:13.3g}{dash(share, '.0%'):>10}"
        print(f"{what:12}{size}{cost}", flush=True)
        row = dict(stage=what, points=n, memories=K, d=d, steps=steps, seconds=seconds, work=work)
        out["rows"].append(row | dict(products=share))


def main():
    form = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    p.add_argument("--sizes", default="2,9,1000", type=lambda s: [int(K) for K in s.split(",")])
    p.add_argument("--sigma", type=float, default=1.0)
    p.add_argument("--t", type=float, default=0.15)
    p.add_argument("--seed", type=int, default=9)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--plain-steps", type=int, default=300, help="plain training steps to time")
    p.add_argument("--threads", type=int, help="threads of PyTorch; its own choice if not given")
    for name in "ablation", "parts", "scale":
        p.add_argument(f"--{name}", action="store_true")
    p.add_argument("--json", help="file for the numbers")
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    here = dict(torch=torch.__version__, threads=torch.get_num_threads())
    here |= dict(machine=platform.machine())
    rate = 2 * product_rate() / 1e9
    print(*(f"{k} {v}," for k, v in here.items()), f"width-{WIDTH} products at {rate:.0f} GFLOP/s")
    chosen = [name for name in ("ablation", "parts", "scale") if getattr(a, name)] or ["stages"]
    for name in chosen:
        here[name] = {}
        globals()[f"print_{name}"](a, here[name])
    if a.json:
        with open(a.json, "w") as f:
            json.dump(here, f, indent=1)


if __name__ == "__main__":
    main()
