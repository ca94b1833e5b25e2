#!/usr/bin/env python3
"""Train the networks that the explorer shows, and write their files into nbs/.

    explorer_networks.py            train all that are missing or stale
    explorer_networks.py all        train all
    explorer_networks.py check      list those that are missing or stale; fails if there are any

They are the networks of chapter 10, `trained_model(circle_patterns(K))`, for five K from 2 to
1,000. Each is one file network-K<K>.safetensors: weights in float16, memories in float32, and under
`about` in its metadata a JSON text with K, seeds, settings, and a fingerprint of the source that
shapes the weights. The explorer reads these files; nothing else writes them. On the same machine
the same source gives the same bytes. It takes about a minute.
"""

import hashlib
import inspect
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from amtutorial import data, sampling, scorenet, sde, training
from amtutorial.cache import write_in_one_step

ROOT = Path(__file__).resolve().parent.parent
SIZES = 2, 9, 32, 128, 1000
SETTINGS = dict(seed=9, iterations=1000)  # of chapter 10
SHAPING = (
    data.circle_patterns,
    data.create_subset,
    data.generate_circle_data,
    data.unit_of,
    sampling.moments,
    sampling.suited_grid,
    scorenet.FourierEmbedding,
    scorenet.ScoreNet,
    sde.VESDETerms,
    sde.posterior_mean,
    training.stratified_times,
    training.noisy_batch,
    training._draw_weights,
    training._new_network,
    training._adam,
    training._batches,
    training.train_loop,
    training.trained_model,
)


def fingerprint():
    "Of the source of everything that shapes the weights."
    return hashlib.sha256("\n".join(map(inspect.getsource, SHAPING)).encode()).hexdigest()


def about(K):
    "What stands in the file of K memories beside the numbers."
    exact = dict(targets="posterior means", readout=True, sigma=1.0, t_min=sde.T_MIN)
    return dict(K=K, pattern_seed=9, source=fingerprint()) | SETTINGS | exact


def path_of(K):
    return ROOT / "nbs" / f"network-K{K}.safetensors"


def stale():
    "Numbers of memories whose file is missing, or was written by another source."
    return [K for K in SIZES if not path_of(K).exists() or read(K)[0] != about(K)]


def read(K):
    "What the file of K memories says about itself, and its tensors by name."
    with safe_open(path_of(K), "pt") as f:
        return json.loads(f.metadata()["about"]), {name: f.get_tensor(name) for name in f.keys()}


def train(K):
    "Train the network of K memories and write its file."
    patterns = data.circle_patterns(K)
    model = training.trained_model(patterns, device="cpu", cache=False, **SETTINGS)
    weights = {name: w.half() for name, w in model.state_dict().items() if w.is_floating_point()}
    assert model.unit == 1 and not model.center.any(), "the explorer knows no unit and no centre"
    for name in "data_mean", "data_cov", "unit", "center":
        del weights[name]
    tensors = {name: w.contiguous() for name, w in weights.items()} | dict(memories=patterns)
    write_in_one_step(path_of(K), save(tensors, dict(about=json.dumps(about(K)))))


def main(arguments):
    wanted = SIZES if arguments == ["all"] else stale()
    if arguments == ["check"]:
        for K in wanted:
            print(f"{path_of(K).relative_to(ROOT)} is stale: run tools/explorer_networks.py")
        return bool(wanted)
    torch.set_num_threads(1)
    for K in wanted:
        train(K)
        print(f"{path_of(K).relative_to(ROOT)}: {path_of(K).stat().st_size:,} bytes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
