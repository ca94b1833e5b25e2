"""What broke other software, in inputs of our own; each case names the public report it is from."""
import subprocess
import sys

import numpy as np
import pytest
import torch

from amtutorial.data import merge_patterns
from amtutorial.minima import grid_minima
from amtutorial.scorenet import ScoreNet
from amtutorial.sde import VESDETerms

STD = VESDETerms(1.0).marginal_prob_std
OURS = "_extra_state", "data_mean", "data_cov"  # what a published checkpoint does not name


# Meaning carried by absence: pytorch 141256, pytorch 3805


def trained_like(readout):
    "A network with moments, as training leaves it."
    model = ScoreNet(marginal_prob_std=STD, readout=readout)
    model.data_mean, model.data_cov = torch.tensor([0.5, -0.25]), torch.eye(2) / 8
    return model


def whole(model):
    "Everything that a load could change, and what comes out."
    x, t = torch.linspace(-1, 1, 20).reshape(10, 2), torch.linspace(0.1, 1, 10)
    with torch.no_grad():
        state = model.state_dict() | dict(scores=model(x, t))
    return {name: value.clone() for name, value in state.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize("names", [
    [], ["output.bias"], ["data_mean"], ["input_proj.weight", "data_mean", "data_cov"]])
def test_a_load_of_a_part_leaves_the_rest(names, readout):
    # pytorch 141256, 3805
    model = trained_like(readout)
    before = whole(model)
    part = {name: before[name] for name in names}
    model.load_state_dict(part, strict=False)
    assert model.readout == readout and same(whole(model), before)
    torch.nn.ModuleDict(dict(net=model)).load_state_dict(
        {f"net.{name}": value for name, value in part.items()}, strict=False)
    assert same(whole(model), before)


@pytest.mark.parametrize("readout", [False, True])
def test_a_load_without_the_form_alone_says_so(readout):
    # pytorch 141256, 3805
    model = trained_like(readout)
    before = whole(model)
    nameless = {name: v for name, v in model.state_dict().items() if name != "_extra_state"}
    with pytest.raises(RuntimeError, match="_extra_state"):
        model.load_state_dict(nameless)
    model.load_state_dict(nameless, strict=False)
    assert same(whole(model), before)


@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_whole_published_checkpoint_means_the_published_form(readout, strict, inside):
    # pytorch 141256, 3805
    published, model = ScoreNet(marginal_prob_std=STD), trained_like(readout)
    checkpoint = {n: v for n, v in published.state_dict().items() if n not in OURS}
    holder = torch.nn.ModuleDict(dict(net=model)) if inside else model
    holder.load_state_dict(
        {"net." * inside + name: v for name, v in checkpoint.items()}, strict=strict)
    assert not model.readout and same(whole(model), whole(published))


# Worst cases: scipy 12956, scipy 9165


def test_memory_of_merging_many_memories_at_one_place():
    # scipy 12956: all pairs at once took 1.7 GB
    script = """
import resource, torch
from amtutorial.data import merge_patterns
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
merge_patterns(torch.rand(8000, 2))
before = peak()
places, share = merge_patterns(torch.ones(8000, 2))
assert places.tolist() == [[1, 1]] and share.tolist() == [1]
near, apart = torch.rand(4000, 2) * 1e-4, torch.tensor([[0., 0], [1, 0]])
places, share = merge_patterns((near[:, None] + apart).reshape(-1, 2))
assert len(places) == 2 and share.tolist() == [0.5, 0.5]
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert float(done.stdout) < 200  # MB; two blocks of a million pairs are some 100


def test_groups_do_not_depend_on_blocks():
    # scipy 12956: 4 million pairs, and a chain that crosses the blocks
    crowd = torch.arange(2000.0) / 2000 * 1e-3
    chain = torch.arange(1000.0) * 0.0015 + 0.002
    x = torch.cat([crowd, chain, torch.tensor([9.0, -9.0])])[:, None]
    places, share = merge_patterns(x)
    assert share.tolist() == pytest.approx([3000 / 3002, 1 / 3002, 1 / 3002])
    assert places[1:].tolist() == [[9.0], [-9.0]]  # in the order of their first members


def test_a_long_staircase_of_minima():
    # scipy 9165
    steps = np.arange(3003)
    row = np.where(steps % 2, -steps + 5.0, -steps)
    where, barrier = grid_minima(np.stack([row, row + 0.1, row + 0.2]))
    assert len(where) == 1502 and where[0].tolist() == [0, 3002]
    assert barrier[0] == np.inf and np.allclose(barrier[1:], 4, rtol=0, atol=1e-9)
