"""The training step as a CUDA graph: with an imitation of the recording, and with the real one on every GPU there is."""
from contextlib import contextmanager, nullcontext

import torch

from amtutorial.data import circle_patterns
from amtutorial.sde import VESDETerms
from amtutorial.training import _captured, _paces, _prepared, noisy_batch, train_loop, train_together


class Graph:
    "Keeps the calls made while it records, without making them, as a GPU does; makes them on replay."
    open = None
    def __init__(self): self.calls = []
    def replay(self):
        for call in self.calls: call()

@contextmanager
def recording(graph, stream):
    Graph.open = graph
    yield
    Graph.open = None

class Stream:
    def wait_stream(self, other): assert isinstance(other, Stream)

def recordable(step):
    "A step that, while a graph records, only leaves a note and the place where its loss will stand."
    def call(*batch):
        if Graph.open is None: return step(*batch)
        loss = torch.zeros(())
        Graph.open.calls.append(lambda: loss.copy_(step(*batch)))
        return loss
    return call

def test_replayed_steps_are_the_steps(monkeypatch):
    for name, fake in dict(Stream=Stream, current_stream=Stream, stream=lambda s: nullcontext(), CUDAGraph=Graph, graph=recording).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    sde, sets = VESDETerms(1.), [circle_patterns(3), circle_patterns(40)]
    def prepared(): return list(zip(*(_prepared(patterns, sde, True, 5) for patterns in sets)))
    g = torch.Generator().manual_seed(0)
    batches = list(zip(*(zip(*noisy_batch(p[torch.randint(len(p), (30, 8, 4), generator=g)], sde.marginal_prob_std, patterns=p, generator=g), _paces(2e-2, 30)) for p in sets)))
    models, steps, restarts = prepared()
    replay = _captured([recordable(step) for step in steps], batches[0])
    assert all(p.grad.norm() > 0 for model in models for p in model.parameters())      # it did try its steps before recording
    for restart in restarts: restart()
    plain_models, plain_steps, _ = prepared()
    for batch in batches:
        losses, wanted = replay(batch), [step(*b) for step, b in zip(plain_steps, batch)]
        assert [loss.item() for loss in losses] == [loss.item() for loss in wanted]
    for a, b in zip(models, plain_models):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))

def test_a_gpu_trains_what_the_processor_trains():
    "The same batches and the same steps: after ten of them only rounding differs, as between the plain loop and ours in chapter 6."
    sde, sets = VESDETerms(1.), [circle_patterns(3), circle_patterns(40)]
    weights = lambda model: torch.nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    alone = [weights(train_loop(p, sde, 10, device="cpu", seed=5)) for p in sets]
    moved = [(w - weights(train_loop(p, sde, 10, device="cpu", seed=6))).abs().max() for w, p in zip(alone, sets)]
    for device in ("cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))):
        for w, m, model in zip(alone, moved, train_together(sets, sde, 10, device=device, seed=5)):
            assert (weights(model) - w).abs().max() < (1e-3 if "cuda" in device else 1e-12) < m
