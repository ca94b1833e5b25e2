#!/usr/bin/env python3
"""Time every stage beside its plain form, on this machine, in one run.

    python bench/bench.py                      # K = 2, 9, 1000; about two minutes on two cores
    python bench/bench.py --sizes 4,30 --sigma 0.5 --repeats 5 --json bench.json
    python bench/bench.py --ablation           # what each part of the training recipe contributes to the error
    python bench/bench.py --parts              # what each way of computing contributes to the speed, form against form
    python bench/bench.py --scale              # how the cost of each stage grows with points, memories, dimensions and steps

The plain forms are what the published page does, in a few lines of our own: 50,000 steps of Adam with one time and one
draw of noise per point (timed on a few hundred and scaled), 1,000 Euler-Maruyama steps, and an adaptive solver in t with
one Jacobian per point. Columns: seconds (median of the repeats), error, how many times faster than the plain form, and
the share of the time that the matrix products alone need, at the rate measured for this network's width (two large
products a point: the first two layers are one).
"""
import argparse, json, math, os, platform, statistics, time
from contextlib import contextmanager
from copy import deepcopy
from unittest.mock import patch

os.environ.setdefault("TQDM_DISABLE", "1")
import torch
from scipy.integrate import solve_ivp
from torch.func import jacrev, vmap

from amtutorial import likelihood
from amtutorial.data import circle_patterns, one_core_each, plane_grid
from amtutorial.likelihood import energy_error, ode_likelihood_with_laplacian, score_and_divergence
from amtutorial.sampling import Euler_Maruyama_sampler, memory_shares
from amtutorial.scorenet import ScoreNet, network_divergence
from amtutorial.sde import VESDETerms, marginal_logp, marginal_score
from amtutorial.training import loss_fn, score_error, train_loop, update_ema

WIDTH = 128 # of the network's layers

def median_time(f, repeats=3):
    "Median seconds of `repeats` runs of f, and the last result."
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = f()
        if torch.cuda.is_available(): torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result

def ceiling(rows, device="cpu"):
    "Multiply-adds a second of (rows, 128) by (128, 128) products: the best that this machine does at this width."
    a, w = torch.randn(rows, WIDTH, device=device), torch.randn(WIDTH, WIDTH, device=device)
    n = max(1, 200_000 // rows)
    def products():
        for _ in range(n): a @ w
    products()
    return n * rows * WIDTH**2 / median_time(products, 7)[0]


# The plain forms

def plain_train(patterns, sde, steps):
    "One time and one draw of noise for each point, a constant learning rate, an average of the weights."
    model = ScoreNet(marginal_prob_std=sde.marginal_prob_std)
    ema, optimizer = deepcopy(model), torch.optim.Adam(model.parameters(), lr=1e-4)
    for _ in range(steps):
        x = patterns[torch.randperm(len(patterns))[:500]]
        t, z = torch.rand(len(x)) * (1 - 1e-5) + 1e-5, torch.randn_like(x)
        std = sde.marginal_prob_std(t)[:, None]
        loss = (model(x + std * z, t) * std + z).square().mean()
        loss.item()
        loss.backward(); optimizer.step(); optimizer.zero_grad()
        update_ema(ema, model)
    return ema.eval()

@torch.no_grad()
def plain_sample(model, sde, patterns, n, steps=1000):
    "Equal Euler-Maruyama steps from a ring."
    x, times = sde.sigma * torch.nn.functional.normalize(torch.randn(n, 2)), torch.linspace(1, 1e-5, steps + 1)
    for t, s in zip(times[:-1], times[1:]):
        mean = x + sde.sigma**2 * model(x, t.expand(n)) * (t - s)
        x = mean + sde.sigma * (t - s).sqrt() * torch.randn_like(x)
    return mean

@torch.no_grad()
def plain_energy(model, sde, x, t0):
    "Adaptive steps in t, one Jacobian per point, ending on a Gaussian."
    trace = vmap(lambda x, t: jacrev(lambda y: model(y[None], t[None])[0])(x).trace())
    def slope(t, y):
        z, times = torch.tensor(y[:x.numel()]).float().view_as(x), torch.full((len(x),), float(t))
        return -0.5 * sde.sigma**2 * torch.cat([model(z, times).ravel(), trace(z, times)]).double().numpy()
    y = torch.tensor(solve_ivp(slope, (t0, 1.), torch.cat([x.ravel(), torch.zeros(len(x))]).numpy(), rtol=1e-5, atol=1e-5).y[:, -1])
    return -(y[x.numel():] + marginal_logp(y[:x.numel()].view_as(x), 1., torch.zeros(1, 2), sde.sigma)).float()


# The stages

def products(rows, times=32, layers=3):
    "A function that makes the matrix products of one training step: forward, and twice as many backward."
    h, g, e, w = torch.randn(rows, WIDTH), torch.randn(rows, WIDTH), torch.randn(times, WIDTH), torch.randn(WIDTH, WIDTH)
    out, small, slope = torch.empty_like(h), torch.empty_like(e), torch.empty_like(w)
    def step():
        for _ in range(layers): torch.mm(h, w, out=out), torch.mm(g, w, out=out), torch.mm(g.T, h, out=slope)
        for _ in range(6 - layers): torch.mm(e, w, out=small), torch.mm(e, w, out=small), torch.mm(e.T, e, out=slope)
    return step

def side_by_side(f, g, repeats, n=1):
    "Median seconds of n calls of f and of g, called in turns."
    def once(h):
        start = time.perf_counter()
        for _ in range(n): h()
        return (time.perf_counter() - start) / n
    once(f), once(g)
    pairs = [(once(f), once(g)) for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*pairs)]

def stages(K, sigma, t, repeats, plain_steps, seed):
    "Rows (stage, plain seconds, our seconds, our error, share of the time that the matrix products need) for one number of memories."
    sde, patterns, grid = VESDETerms(sigma), circle_patterns(K, seed), plane_grid(100)[2]
    reference = -marginal_logp(grid, t, patterns, sigma)
    train = lambda iterations: train_loop(patterns, sde, iterations, seed=seed, device="cpu")
    plain_train(patterns, sde, 20), train(20) # warm up
    plain, _ = median_time(lambda: plain_train(patterns, sde, plain_steps), 1)
    plain *= 50_000 / plain_steps
    for steps in 200, 1000:
        seconds, model = median_time(lambda: train(steps), repeats)
        with one_core_each(): needed, _ = median_time(products(256, layers=2), 50)
        yield f"train, {steps:,} steps", plain, seconds, score_error(model, patterns, sigma), steps * needed / seconds
    large = ceiling(1024)
    slow, _ = median_time(lambda: plain_sample(model, sde, patterns, 1500), 1)
    seconds, x = median_time(lambda: Euler_Maruyama_sampler(model, sde, 1500, patterns=patterns, device="cpu"), repeats)
    yield "1,500 samples", slow, seconds, memory_shares(x, patterns)["distance"], 51 * 1500 * 2 * WIDTH**2 / large / seconds
    slow, _ = median_time(lambda: plain_energy(model, sde, grid, t), 1)
    seconds, logp = median_time(lambda: ode_likelihood_with_laplacian(grid, model, sde, eps=t, patterns=patterns, device="cpu"), repeats)
    steps = max(4, math.ceil(-2 * math.log(t))) # 2 looks at the score in each, and at 2 steps + 1 places score and two derivatives
    yield "energy, 100 x 100", slow, seconds, energy_error(-logp, reference), (2 * steps + 3 * (2 * steps + 1)) * len(grid) * 2 * WIDTH**2 / large / seconds

def ablation(K, steps=1000):
    "Score error after `steps` steps of 256 points, with each part of the recipe switched off in turn."
    patterns, sde = circle_patterns(K), VESDETerms(1.)
    options = {"the recipe": {}, "one draw of noise for each time": dict(times=256, draws=1), "draws of the target, not its mean": dict(exact_targets=False),
               "the published network form": dict(readout=False), "a quarter of the learning rate": dict(lr=5e-3)}
    for name, change in options.items(): yield name, score_error(train_loop(patterns, sde, steps, seed=0, device="cpu", **change), patterns)

def parts(repeats):
    "Rows (what, seconds of the usual form, seconds of ours) for the same result, form against form."
    sde, patterns, grid, t = VESDETerms(1.), circle_patterns(9), plane_grid(100)[2], torch.tensor(0.15)
    model = train_loop(patterns, sde, 200, seed=0, device="cpu")
    for draws in 8, 16:
        usual = ScoreNet(marginal_prob_std=sde.marginal_prob_std, readout=True)
        optimizer = torch.optim.Adam(usual.parameters(), lr=1e-3, fused=True)
        def plain():
            for _ in range(100):
                optimizer.zero_grad()
                loss_fn(usual, patterns[torch.randint(9, (32, draws))], sde.marginal_prob_std, patterns=patterns).backward()
                torch.nn.utils.clip_grad_norm_(usual.parameters(), 10.); optimizer.step()
        ours = lambda: train_loop(patterns, sde, 100, seed=0, device="cpu", draws=draws)
        yield f"100 steps of {32 * draws} by autograd", *side_by_side(plain, ours, repeats)
        for layers, name in (3, "as written"), (2, "as left"):
            with one_core_each(): needed, seconds = side_by_side(products(32 * draws, layers=layers), ours, repeats)
            yield f"  their matrix products, {name}", 100 * needed, seconds
    with torch.no_grad():
        few, ours = grid[::10], lambda: network_divergence(model, grid[::10], t)
        yield "divergence, a Jacobian per point", *side_by_side(lambda: vmap(jacrev(lambda y: model(y, t)))(few).diagonal(dim1=1, dim2=2).sum(1), ours, repeats, 5)
        unknown = lambda x, t: model(x, t) # hides that it is a network, so that PyTorch's forward mode is used
        yield "divergence, PyTorch's forward mode", *side_by_side(lambda: score_and_divergence(unknown, few, t), ours, repeats, 5)
        yield "a time embedded for each point", *side_by_side(lambda: model(few, t.expand(len(few))), lambda: model(few, t), repeats, 20)
        energy = lambda: ode_likelihood_with_laplacian(grid, model, sde, "cpu", 0.15, patterns=patterns)
        @contextmanager
        def all_cores_each(): yield map
        def shared():
            with patch.object(likelihood, "one_core_each", all_cores_each): return energy()
        yield "energies, all cores on each operation", *side_by_side(shared, energy, repeats)

def scale(repeats):
    "Rows (what, points, memories, d, steps, seconds, nanoseconds per unit of work, share of the matrix products): how the cost of each stage grows."
    for n, K, d in [(1000, 1000, 2), (10_000, 1000, 2), (1000, 10_000, 2), (10_000, 60_000, 2), (1000, 10_000, 64), (4000, 10_000, 64), (1000, 10_000, 784), (10_000, 60_000, 784)]:
        x, xi = torch.randn(n, d), torch.randn(K, d)
        seconds, _ = median_time(lambda: marginal_score(x, 0.5, xi), 1 if n * K * d > 1e10 else repeats)
        a, b = torch.randn(256, d), torch.randn(min(K, 10_000), d)
        rate = len(a) * len(b) * d / median_time(lambda: a @ b.T, 9)[0]
        yield "exact score", n, K, d, 1, seconds, n * K * d, 2 * n * K * d / rate / seconds if d > 8 else None
    for K, d, steps in (2, 2, 500), (1000, 2, 500), (10_000, 2, 100), (2, 64, 500):
        xi, sde = (circle_patterns(K) if d == 2 else torch.randn(K, d)), VESDETerms(1.)
        seconds, _ = median_time(lambda: train_loop(xi, sde, steps, seed=0, device="cpu"), repeats)
        yield "training, 256 points a step", 256, K, d, steps, seconds, 256 * steps, None
    for d in 2, 64:
        model = ScoreNet(d, marginal_prob_std=sde.marginal_prob_std, readout=True)
        for n, steps in (1500, 50), (15_000, 50), (1500, 500):
            yield "samples", n, None, d, steps, median_time(lambda: Euler_Maruyama_sampler(model, sde, n, steps, device="cpu"), repeats)[0], n * steps, None
        for n, steps in (2500, 4), (10_000, 4), (10_000, 16):
            yield "energies", n, None, d, steps, median_time(lambda: ode_likelihood_with_laplacian(torch.randn(n, d), model, sde, "cpu", 0.15, steps=steps), 1)[0], n * steps, None

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sizes", default="2,9,1000")
    p.add_argument("--sigma", type=float, default=1.)
    p.add_argument("--t", type=float, default=0.15)
    p.add_argument("--seed", type=int, default=9)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--plain-steps", type=int, default=300, help="plain training steps that are timed and scaled to 50,000")
    p.add_argument("--threads", type=int, help="threads of PyTorch; its own choice if not given")
    p.add_argument("--ablation", action="store_true")
    p.add_argument("--parts", action="store_true")
    p.add_argument("--scale", action="store_true")
    p.add_argument("--json")
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    sizes, out = [int(K) for K in a.sizes.split(",")], dict(torch=torch.__version__, threads=torch.get_num_threads(), machine=platform.machine())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}; width-128 products at {2 * ceiling(1024) / 1e9:.0f} GFLOP/s")
    if a.scale:
        print(f"{'':28}{'points':>8}{'memories':>10}{'d':>5}{'steps':>7}{'seconds':>10}{'ns per unit':>13}{'products':>10}")
        dash = lambda v, form: "-" if v is None else format(v, form)
        out["scale"] = []
        for what, n, K, d, steps, seconds, work, share in scale(a.repeats):
            print(f"{what:28}{n:8,}{dash(K, ','):>10}{d:5}{steps:7,}{seconds:10.3f}{1e9 * seconds / work:13.3g}{dash(share, '.0%'):>10}", flush=True)
            out["scale"].append(dict(stage=what, points=n, memories=K, d=d, steps=steps, seconds=seconds, work=work, products=share))
    elif a.parts:
        print(f"{'':40}{'usual s':>10}{'ours s':>10}{'ratio':>8}")
        out["parts"] = {}
        for name, usual, ours in parts(max(a.repeats, 7)):
            print(f"{name:40}{usual:10.4f}{ours:10.4f}{usual / ours:8.2f}", flush=True)
            out["parts"][name] = dict(usual=usual, ours=ours)
    elif a.ablation:
        out["ablation"] = {K: {name: error for name, error in ablation(K) if print(f"K = {K:5,}  {name:34} {error:.5f}") is None} for K in sizes}
    else:
        print(f"{'':10}{'stage':20}{'plain s':>9}{'ours s':>9}{'faster':>8}{'error':>11}{'of ceiling':>12}")
        total = dict(plain=0., ours=0.)
        for K in sizes:
            for stage, slow, fast, error, share in stages(K, a.sigma, a.t, a.repeats, a.plain_steps, a.seed):
                print(f"K = {K:<6,}{stage:20}{slow:9.2f}{fast:9.3f}{slow / fast:7.0f}x{error:11.2e}{share:12.0%}", flush=True)
                out.setdefault(str(K), {})[stage] = dict(plain=slow, ours=fast, ratio=slow / fast, error=error, ceiling=share)
                if "200" not in stage: total["plain"] += slow; total["ours"] += fast
        print(f"all stages: {total['plain'] / total['ours']:.0f} times faster")
    if a.json:
        with open(a.json, "w") as f: json.dump(out, f, indent=1)

if __name__ == "__main__": main()
