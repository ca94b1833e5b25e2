"""Processes killed, stopped and starved while they train, sweep and write: what is on disk stays
whole, what was finished stays, and the next run starts clean. Each test states its figures."""
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import matplotlib
import psutil
import pytest
import torch
from helpers import none
from PIL import Image
from safetensors import safe_open

from amtutorial import cache, training
from amtutorial.cli import main
from amtutorial.data import circle_patterns
from amtutorial.training import trained_model

XI = circle_patterns(3)


@pytest.fixture(scope="module", autouse=True)
def loaded():
    "What is loaded at the first training and the first drawing is there before the first fork."
    with tempfile.TemporaryDirectory() as out:
        for line in "--sizes 2 --no-cache --iterations 2", "digits --sizes 8 --steps 2 --jobs 1":
            assert command(f"{line} --quick --out {out}") == 0


@pytest.fixture
def place(monkeypatch):
    "A folder that every user may enter, with the cache in it."
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(folder / "cache"))
    yield folder
    shutil.rmtree(folder)


# Processes: forked, so that none loads PyTorch anew


def fork(work, *before, says=2):
    "A process that does `before` and `work`, and ends with the status of `work`; its number."
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        torch.set_num_threads(1)
        matplotlib.use("agg")
        sys.stdout = sys.stderr = os.fdopen(says, "w", buffering=1)
        for step in before:
            step()
        status = work() or 0
    except BaseException as e:
        print(f"{type(e).__name__}: {e}", flush=True)
    finally:
        os._exit(status)


def finish(work, *before):
    "The status of a process, and what it said."
    start, end = os.pipe()
    pid = fork(work, *before, says=end)
    os.close(end)
    with os.fdopen(start) as f:
        said = f.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def train(seed, iterations=60):
    trained_model(XI, iterations=iterations, seed=seed, device="cpu")


def command(line):
    return main(line.split())


def work_of(kind, i, place):
    "The i-th piece of work of a kind, with everything to be done anew."
    if kind == "training":
        return partial(train, i)
    if kind == "experiment":
        on = f"--sizes 2 --iterations 20 --device cpu --out {place}/out"
        return partial(command, f"--quick --seed {i} {on}")
    on = f"--sizes 8 --seeds 1 --jobs 1 --out {place}/sweep"
    return partial(command, f"digits --quick --steps {2 * i + 20},{2 * i + 21} {on}")


# Killed


def is_whole(path):
    with suppress(ValueError, OSError):
        if path.suffix == ".safetensors":
            metadata, total = cache._contents(path.read_bytes())
            return metadata["sum"] == total
        if path.suffix == ".png":
            Image.open(path).load()
        return path.suffix != ".json" or bool(json.loads(path.read_bytes()))


def results(place):
    "The finished models and pieces, which later runs leave alone, and their contents."
    paths = [*place.glob("cache/*.safetensors"), *place.glob("sweep/pieces/*.json")]
    return {path: path.read_bytes() for path in paths}


def killed_at(moment, share):
    "From now on this process kills itself, in its n-th writing: before it, within, after."
    file, stage = divmod(moment, 4)
    write, replace, count = Path.write_bytes, os.replace, []
    end = lambda: os.kill(os.getpid(), signal.SIGKILL)

    def dying_write(path, data):
        now = len(count) == file
        if now and stage == 0:
            end()
        write(path, data[: int(share * len(data))] if now and stage == 1 else data)
        if now and stage in (1, 2):
            end()

    def dying_replace(*ends):
        replace(*ends)
        if len(count) == file:
            end()
        count.append(1)

    Path.write_bytes, os.replace = dying_write, dying_replace


FILES = dict(training=1, experiment=6, sweep=4)  # that a later run writes in one step


def processor():
    "Seconds that finished children have used."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def kill_after(pid, seconds):
    "Kill a process when it has used so much of the processor, however busy the machine is."
    process = psutil.Process(pid)
    over = lambda: process.status() == psutil.STATUS_ZOMBIE
    while not over() and sum(process.cpu_times()[:2]) < seconds:
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("kind, at_times, at_writing", [
    ("training", 16, 4), ("experiment", 10, 6), ("sweep", 8, 6)])
def test_killed(kind, at_times, at_writing, place, record_property):
    "At fifty random moments in all, sixteen of them while a file is written."
    rng, faults = random.Random(kind), []
    start, died = processor(), 0
    assert finish(work_of(kind, 0, place))[0] == 0
    whole_run = processor() - start
    for i in range(1, at_times + at_writing + 1):
        work, before = work_of(kind, i, place), results(place)
        if i <= at_times:
            pid = fork(work)
            kill_after(pid, rng.random() * whole_run)
        else:
            moment = partial(killed_at, rng.randrange(4 * FILES[kind]), rng.random())
            pid = fork(work, moment)
        died += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        faults += [f"{i}: {p} is not whole" for p in place.rglob("*") if not is_whole(p)]
        after = results(place)
        status, said = finish(work)
        faults += [f"{i}: {said}"] * (status != 0 or "not used" in said or "not kept" in said)
        late = results(place)
        kept = before.items() <= after.items() <= late.items()
        faults += [f"{i}: a finished result was lost"] * (not kept)
        faults += [f"{i}: {p} was left" for p in place.rglob("*.part")]
    none(faults)
    assert died > 0.8 * i  # the others ended a little earlier than the first run did
    record_property(f"figure:kills survived, {kind}", f"{i} of {i}")


# Side by side


def counted_training(place, seed):
    "Trains, and writes down that it did."
    real = training.train_loop

    def loop(*args, **kwargs):
        with open(place / "trainings", "a") as f:
            f.write("1\n")
        return real(*args, **kwargs)

    training.train_loop = loop
    model = trained_model(XI, iterations=300, seed=seed, device="cpu")
    weights = b"".join(v.numpy().tobytes() for v in model.state_dict().values())
    (place / f"weights-{seed}-{os.getpid()}").write_bytes(weights)


def count(place):
    return len((place / "trainings").read_text().split())


@pytest.mark.parametrize("n", [2, 8])
def test_side_by_side(n, place, record_property):
    "On one empty cache, all at once: trained exactly once, and all have the same network."
    pids = [fork(partial(counted_training, place, 5)) for _ in range(n)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * n
    assert count(place) == 1
    weights = [p.read_bytes() for p in place.glob("weights-*")]
    assert len(weights) == n and len(set(weights)) == 1
    record_property(f"figure:trainings by {n} processes at once", "1")


def test_side_by_side_and_the_first_is_killed(place, record_property):
    "While it trains: one of those that wait trains instead."
    first = fork(partial(counted_training, place, 5))
    wait_for((place / "trainings").exists)
    pids = [fork(partial(counted_training, place, 5)) for _ in range(3)]
    os.kill(first, signal.SIGKILL)
    assert os.waitpid(first, 0)[1] == signal.SIGKILL
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 3
    assert count(place) == 2 and len({p.read_bytes() for p in place.glob("weights-*")}) == 1
    record_property("figure:trainings after the trainer was killed", "1 by 3 that waited")


# Files that are cut, or have a bit flipped


class Trained(Exception):
    "Raised where a network would be trained again."


def test_harmed_networks(place, capsys, record_property):
    "A real one: cut at every byte of its header and elsewhere, and a thousand flipped bits."
    train(5, iterations=2)
    (path,) = (place / "cache").glob("*.safetensors")
    with safe_open(path, "pt") as f:
        key = f.metadata()["key"]
    sde = training.VESDETerms(1.0)
    new = partial(training._new_network, XI, sde, 5, readout=True)
    good, rng = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(good[:8], "little")
    places = [*range(header), *(rng.randrange(header, len(good)) for _ in range(100))]
    harmed = [good[:n] for n in places]
    for n in places[::2] + [rng.randrange(len(good)) for _ in range(300)]:
        flipped = bytearray(good)
        flipped[n] ^= 1 << rng.randrange(8)
        harmed.append(bytes(flipped))
    used = 0
    for data in harmed:
        path.write_bytes(data)
        with suppress(cache._Unusable):
            cache._load(path, key, new)
            used += 1
    path.write_bytes(good)
    assert used == 0 and cache._load(path, key, new)
    record_property("figure:harmed files noticed", f"{len(harmed):,} of {len(harmed):,}")


# No space, no rights, no home


def limited(size):
    "Files of this process end here, as on a full disk."
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_no_space(place, record_property):
    "At every stage of writing: the network is given out, nothing that is cut stays."
    work, cases = lambda: print(type(trained_model(XI, iterations=2, device="cpu")).__name__), 0
    for size in 0, 1, 1000, 100_000, 401_000:
        status, said = finish(work, partial(limited, size))
        assert status == 0 and said.endswith("(File too large): trained, not kept.\nScoreNet\n")
        assert {p.suffix for p in (place / "cache").iterdir()} == {".lock"}
        cases += 1
    line = f"digits --quick --sizes 8 --seeds 1 --steps 5,6 --jobs 1 --out {place}/sweep"
    for size in 0, 300:
        status, said = finish(partial(command, line), partial(limited, size))
        assert (status, said) == (1, "amtutorial: [Errno 27] File too large\n")
        assert not list(place.glob("sweep/pieces/*"))
        cases += 1
    assert finish(partial(command, line))[0] == 0
    record_property("figure:full disks survived", f"{cases} of {cases}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_as_somebody_else(place, record_property):
    "A user without home, in a cache that may be read; then without any cache."
    train(5, iterations=2)

    def other():
        os.environ.pop("HOME", None)
        os.environ.pop("XDG_CACHE_HOME", None)
        os.setgid(54321)
        os.setuid(54321)

    before = sorted((place / "cache").iterdir())
    asked = partial(train, 5, 2)
    assert finish(asked, other) == (0, "")
    assert finish(partial(train, 6, 2), other)[1].endswith("trained, not kept.\n")
    assert sorted((place / "cache").iterdir()) == before
    without = partial(os.environ.pop, "AMTUTORIAL_CACHE")
    status, said = finish(asked, without, other)
    assert status == 0 and said.startswith("There is no cache (") and "not kept" in said
    record_property("figure:users without rights or home", "3 of 3")


# Ctrl-C

STAGES = """
import sys
import amtutorial.experiment as e
from amtutorial import cli, training
def told(name, f):
    def g(*args, **kwargs):
        print("stage", name, flush=True)
        return f(*args, **kwargs)
    return g
training.train_loop = told("training", training.train_loop)
e.Euler_Maruyama_sampler = told("sampling", e.Euler_Maruyama_sampler)
e.compute_landscape = told("mapping", e.compute_landscape)
e.draw_experiment = told("drawing", e.draw_experiment)
sys.exit(cli.main())
"""


def wait_for(condition, seconds=100):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def interrupt(process):
    "Press Ctrl-C: what it says, and seconds of processor and of the clock until the end."
    me = psutil.Process(process.pid)
    before, start = me.cpu_times(), time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    seconds, after = time.monotonic() - start, me.cpu_times()
    said = process.communicate()[1]
    return said, after.user + after.system - before.user - before.system, seconds


def started(words, stage=None):
    env = os.environ | dict(TQDM_DISABLE="1", OMP_NUM_THREADS="1")
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # jobs in the background do not
    own = dict(start_new_session=True, preexec_fn=listen, env=env)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, *words], **own, **pipes)
    while stage and (line := process.stdout.readline().split()) != ["stage", stage]:
        assert line, process.stderr.read()
    return process


@pytest.mark.parametrize("stage, kept", dict(training=0, sampling=1, mapping=1, drawing=1).items())
def test_ctrl_c(stage, kept, place, record_property):
    iterations = 100_000 if stage == "training" else 5
    line = f"--sizes 2 --iterations {iterations} --device cpu --out {place}/out"
    with started(["-c", STAGES, *line.split()], stage) as process:
        time.sleep(0.2)
        said, used, seconds = interrupt(process)
    what = f"networks trained to the end, kept in {place / 'cache'}: {kept}"
    assert process.returncode == 130 and said == f"amtutorial: stopped; {what}\n"
    assert used < 1  # seconds of the processor, which do not depend on other work
    assert not list(place.rglob("*.part"))
    figure = f"{seconds:.1f} s, {used:.1f} s of the processor"
    record_property(f"figure:Ctrl-C while {stage} takes", figure)


def test_ctrl_c_in_a_sweep(place, record_property):
    line = f"digits --quick --sizes 8 --seeds 1 --steps 5,3000 --jobs 2 --out {place}"
    pieces = place / "pieces"
    with started(["-m", "amtutorial", *line.split()]) as process:
        wait_for(lambda: len(list(pieces.glob("*.json"))) > 1)
        workers = psutil.Process(process.pid).children(recursive=True)
        said, used, seconds = interrupt(process)
    what = f"finished pieces, kept in {pieces}: {len(list(pieces.glob('*.json')))}; the same"
    assert process.returncode == 130 and f"amtutorial: stopped; {what}" in said
    assert used < 1 and "Traceback" not in said
    assert not psutil.wait_procs(workers, timeout=20)[1] and not list(pieces.glob("*.part"))
    figure = f"{seconds:.1f} s, {used:.1f} s of the processor"
    record_property("figure:Ctrl-C while sweeping takes", figure)
