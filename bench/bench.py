#!/usr/bin/env python3
"""Time every stage beside its plain form, on this machine, in one run.

    python bench/bench.py                      # K = 2, 9, 1000; about two minutes on two cores
    python bench/bench.py --sizes 4,30 --sigma 0.5 --repeats 5 --json bench.json
    python bench/bench.py --ablation           # what each part of the training recipe contributes
    python bench/bench.py --scale              # how cost grows with memories, points, dimensions and steps

The plain forms are what the published page does, in a few lines of our own: 50,000 steps of Adam with one time and one
draw of noise per point (timed on a few hundred and scaled), 1,000 Euler-Maruyama steps, and an adaptive solver in t with
one Jacobian per point. Columns: seconds (median of the repeats), error, how many times faster than the plain form, and
the share of the time that the stage's matrix products alone would need at the rate measured for this network's width.
"""
import argparse, json, math, os, platform, statistics, time
from copy import deepcopy
from functools import partial

os.environ.setdefault("TQDM_DISABLE", "1")
import torch
from scipy.integrate import solve_ivp
from torch.func import jacrev, vmap

from amtutorial.data import circle_patterns, plane_grid
from amtutorial.likelihood import energy_error, ode_likelihood_with_laplacian
from amtutorial.sampling import Euler_Maruyama_sampler, memory_shares
from amtutorial.scorenet import ScoreNet
from amtutorial.sde import VESDETerms, marginal_logp, marginal_score
from amtutorial.training import loss_fn, score_error, train_loop, update_ema

WIDTH, HIDDEN = 128, 3 * 128 * 128 # multiplications per point in the hidden layers; the rest is small

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

def stages(K, sigma, t, repeats, plain_steps, seed):
    "Rows (stage, plain seconds, our seconds, our error, share of the ceiling) for one number of memories."
    sde, patterns, grid = VESDETerms(sigma), circle_patterns(K, seed), plane_grid(100)[2]
    reference = -marginal_logp(grid, t, patterns, sigma)
    train = lambda iterations: train_loop(patterns, sde, iterations, seed=seed, device="cpu")
    plain_train(patterns, sde, 20), train(20) # warm up
    plain, plain_model = median_time(lambda: plain_train(patterns, sde, plain_steps), 1)
    plain *= 50_000 / plain_steps
    small, large = ceiling(256), ceiling(1024)
    for steps in 200, 1000:
        seconds, model = median_time(lambda: train(steps), repeats)
        yield f"train, {steps:,} steps", plain, seconds, score_error(model, patterns, sigma), steps * 3 * 256 * HIDDEN / small / seconds
    slow, _ = median_time(lambda: plain_sample(model, sde, patterns, 1500), 1)
    seconds, x = median_time(lambda: Euler_Maruyama_sampler(model, sde, 1500, patterns=patterns, device="cpu"), repeats)
    yield "1,500 samples", slow, seconds, memory_shares(x, patterns)["distance"], 51 * 1500 * HIDDEN / large / seconds
    slow, _ = median_time(lambda: plain_energy(model, sde, grid, t), 1)
    seconds, logp = median_time(lambda: ode_likelihood_with_laplacian(grid, model, sde, eps=t, patterns=patterns, device="cpu"), repeats)
    looks = 4 * max(4, math.ceil(-2 * math.log(t)))
    yield "energy, 100 x 100", slow, seconds, energy_error(-logp, reference), looks * 3 * len(grid) * HIDDEN / large / seconds

def ablation(K, steps=1000):
    "Score error after `steps` steps of 256 points, with each part of the recipe switched off in turn."
    patterns, sde = circle_patterns(K), VESDETerms(1.)
    options = {"the recipe": {}, "one draw of noise for each time": dict(times=256, draws=1), "draws of the target, not its mean": dict(exact_targets=False),
               "the published network form": dict(readout=False), "a quarter of the learning rate": dict(lr=5e-3)}
    for name, change in options.items(): yield name, score_error(train_loop(patterns, sde, steps, seed=0, device="cpu", **change), patterns)

def scale(repeats):
    "Seconds of the exact score as points, memories and dimensions grow, and the share of the matrix products in it."
    for n, K, d in [(1000, 1000, 2), (10_000, 1000, 2), (1000, 10_000, 2), (10_000, 60_000, 2), (1000, 10_000, 64), (1000, 10_000, 784), (2000, 60_000, 784)]:
        x, xi = torch.randn(n, d), torch.randn(K, d)
        seconds, _ = median_time(lambda: marginal_score(x, 0.5, xi), 1 if n * K * d > 1e10 else repeats)
        a, b = torch.randn(min(n, 1024), d), torch.randn(min(K, 10_000), d)
        rate = len(a) * len(b) * d / median_time(lambda: a @ b.T, 3)[0]
        yield n, K, d, seconds, 1e9 * seconds / (n * K * d), 2 * n * K * d / rate / seconds

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
    p.add_argument("--scale", action="store_true")
    p.add_argument("--json")
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    sizes, out = [int(K) for K in a.sizes.split(",")], dict(torch=torch.__version__, threads=torch.get_num_threads(), machine=platform.machine())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}; width-128 products at {2 * ceiling(1024) / 1e9:.0f} GFLOP/s")
    if a.scale:
        print(f"{'points':>8}{'memories':>10}{'d':>5}{'seconds':>10}{'ns per N·K·d':>14}{'products':>10}")
        out["scale"] = [row for row in scale(a.repeats) if print(f"{row[0]:8,}{row[1]:10,}{row[2]:5}{row[3]:10.3f}{row[4]:14.3f}{row[5]:10.0%}") is None]
    elif a.ablation:
        out["ablation"] = {K: {name: error for name, error in ablation(K) if print(f"K = {K:5,}  {name:34} {error:.5f}") is None} for K in sizes}
    else:
        print(f"{'':9}{'stage':20}{'plain s':>9}{'ours s':>9}{'faster':>8}{'error':>11}{'of ceiling':>12}")
        total = dict(plain=0., ours=0.)
        for K in sizes:
            for stage, slow, fast, error, share in stages(K, a.sigma, a.t, a.repeats, a.plain_steps, a.seed):
                print(f"K = {K:<5,}{stage:20}{slow:9.2f}{fast:9.3f}{slow / fast:7.0f}x{error:11.2e}{share:12.0%}", flush=True)
                out.setdefault(str(K), {})[stage] = dict(plain=slow, ours=fast, ratio=slow / fast, error=error, ceiling=share)
                if "200" not in stage: total["plain"] += slow; total["ours"] += fast
        print(f"all stages: {total['plain'] / total['ours']:.0f} times faster")
    if a.json:
        with open(a.json, "w") as f: json.dump(out, f, indent=1)

if __name__ == "__main__": main()
