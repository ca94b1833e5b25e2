"""What broke other software, in inputs of our own; each case names the public report it is from."""
import subprocess
import sys

import numpy as np
import pytest
import torch

from amtutorial.data import merge_patterns
from amtutorial.minima import grid_minima

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
