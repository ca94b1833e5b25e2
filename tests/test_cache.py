"""The cache of trained networks: one training for one setting, and never a stale, foreign or
half-written file. A cache that fails costs time, not the model."""
import compileall
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save

import amtutorial
from amtutorial import cache, training
from amtutorial.cache import cache_dir, cached, write_in_one_step
from amtutorial.data import circle_patterns
from amtutorial.training import trained_model

TINY = dict(iterations=2, device="cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A cache of our own."
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


class Trainer:
    "Trains a tiny network, which differs each time, and counts."

    def __init__(self):
        self.count = 0

    def new(self):
        return torch.nn.Linear(2, 3)

    def train(self):
        self.count += 1
        return self.new()

    def ask(self, config=None, name="tiny", modules=("core",)):
        return cached(name, config or dict(seed=9), modules, self.new, self.train)


@pytest.fixture
def trainer():
    return Trainer()


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def kept(folder):
    "The one model in a folder, in which nothing partial may be left."
    assert {p.suffix for p in folder.iterdir()} <= {".safetensors", ".lock"}
    (path,) = folder.glob("*.safetensors")
    return path


# Trained once


def test_trained_once_and_then_read(folder, trainer, capsys):
    first, second = trainer.ask(), trainer.ask()
    assert trainer.count == 1 and equal(first, second)
    assert not second.training and capsys.readouterr().out == ""
    assert kept(folder).name.startswith("tiny-")


PROCESS = """
import hashlib
from amtutorial import training
from amtutorial.data import circle_patterns
real, count = training.train_loop, []
def counted(*args, **kwargs):
    count.append(1)
    return real(*args, **kwargs)
training.train_loop = counted
model = training.trained_model(circle_patterns(3), iterations=60, device="cpu")
weights = b"".join(v.numpy().tobytes() for v in model.state_dict().values())
print(len(count), hashlib.sha256(weights).hexdigest())
"""


def run(script, where=None):
    "The lines that a script prints in a process of its own, with the package in `where`."
    env = os.environ | dict(TQDM_DISABLE="1", OMP_NUM_THREADS="1")
    how = dict(env=env, cwd=where, capture_output=True, text=True)
    done = subprocess.run([sys.executable, "-c", script], **how)
    assert not done.returncode, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_several_processes_train_once(folder):
    with ThreadPoolExecutor(3) as pool:
        said = list(pool.map(lambda _: run(PROCESS)[-1].split(), range(3)))
    counts, digests = zip(*said)
    assert sum(map(int, counts)) == 1 and len(set(digests)) == 1
    kept(folder)


def test_several_threads_train_once(folder, trainer):
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: trainer.ask(), range(4)))
    assert trainer.count == 1 and all(equal(models[0], m) for m in models)


def test_a_model_read_is_the_model_trained(folder):
    "Also its form, which travels with the weights."
    xi = circle_patterns(3)
    first, second = trained_model(xi, **TINY), trained_model(xi, **TINY)
    x, t = torch.randn(20, 2), torch.rand(20)
    assert first is not second and second.readout and not second.training
    with torch.no_grad():
        assert torch.equal(first(x, t), second(x, t))
    assert all(p.requires_grad for p in second.parameters())


def where_it_will_be(folder, trainer):
    "The path of a model that is not kept yet."
    trainer.ask()
    path = kept(folder)
    path.unlink()
    trainer.count = 0
    return path


def waiting_line(who, path, patience=60):
    who = f"process {who}" if Path("/proc/locks").exists() else "another process"
    then = f"after {patience} seconds it is trained here"
    return f"Waiting for {who}, which trains {path.name}; {then}.\n"


def test_waiting_is_said(folder, trainer, capsys):
    path = where_it_will_be(folder, trainer)
    with FileLock(path.with_suffix(".lock")):
        waiting = threading.Thread(target=trainer.ask)
        waiting.start()
        time.sleep(1.3)
        said = capsys.readouterr().out
        assert waiting.is_alive()
    waiting.join(10)
    assert said == waiting_line(os.getpid(), path)
    assert trainer.count == 1 and not waiting.is_alive() and kept(folder) == path


def test_nobody_waits_to_read(folder, trainer, capsys):
    trainer.ask()
    with FileLock(kept(folder).with_suffix(".lock")):
        trainer.ask()
    assert trainer.count == 1 and capsys.readouterr().out == ""


HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs processes as Unix has them")
def test_the_holder_of_the_lock_is_stopped(folder, trainer, monkeypatch, capsys):
    "We hear of it, and train for ourselves when time is up; then nobody waits any more."
    path = where_it_will_be(folder, trainer)
    monkeypatch.setattr(cache, "_PATIENCE", 1)
    command = [sys.executable, "-c", HOLD, str(path.with_suffix(".lock"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            holder.send_signal(signal.SIGSTOP)
            model = trainer.ask()
            assert capsys.readouterr().out == waiting_line(holder.pid, path, 1)
            assert trainer.count == 1 and equal(model, trainer.ask()) and trainer.count == 1
        finally:
            holder.kill()


def test_a_training_that_fails_leaves_nothing(folder, trainer):
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("tiny", dict(seed=9), ["core"], trainer.new, fail)
    assert not list(folder.glob("*.safetensors")) and not list(folder.glob("*.part"))
    trainer.ask()  # the lock is free
    assert trainer.count == 1


# The key


def test_every_setting_is_in_the_key(folder):
    xi = circle_patterns(3)
    options = [{}, dict(sigma=2.0), dict(iterations=3), dict(seed=1)]
    sets = [xi, xi + 1e-3, xi.flip(0), xi[:2], xi.repeat(1, 2)]
    models = [trained_model(xi, **TINY | o) for o in options]
    models += [trained_model(s, **TINY) for s in sets[1:]]
    assert len(list(folder.glob("*.safetensors"))) == 8
    assert len({tuple(m.output.bias.tolist()) for m in models}) == 8
    trained_model(xi.double().numpy(), **TINY)  # the same memories, in another coat
    trained_model(xi.tolist(), sigma=1, **TINY)
    assert len(list(folder.glob("*.safetensors"))) == 8


def test_settings_are_in_the_key(folder, trainer):
    for config in (dict(a=1), dict(a=2), dict(b=1), dict(a=1.5), dict(a=[1])):
        trainer.ask(config)
    assert trainer.count == 5
    trainer.ask(dict(x=1, y=2))
    trainer.ask(dict(y=2, x=1))  # their order is not
    assert trainer.count == 6


def test_numbers_of_numpy_and_pytorch_are_in_the_key(folder, trainer):
    trainer.ask(dict(n=2, x=0.5, yes=True, a=[1, 2]))
    for of in np.int64, np.uint8, torch.tensor, np.array:
        trainer.ask(dict(n=of(2), x=np.float32(0.5), yes=np.bool_(True), a=np.array([1, 2])))
        trainer.ask(dict(n=2, x=torch.tensor(0.5), yes=True, a=torch.tensor([1, 2])))
    assert trainer.count == 1
    trainer.ask(dict(n=np.int64(3), x=0.5, yes=True, a=[1, 2]))
    assert trainer.count == 2
    for n in 2, np.int64(2), np.array(2), torch.tensor(2):
        trained_model(circle_patterns(2), iterations=n, seed=np.int64(3), device="cpu")
    assert len(list(folder.glob("K2-*.safetensors"))) == 1


def test_pytorch_is_in_the_key(folder, trainer, monkeypatch):
    trainer.ask()
    monkeypatch.setattr(torch, "__version__", "0.0")
    trainer.ask()
    assert trainer.count == 2


def copy_of_the_package(folder):
    package = folder / "copy" / "amtutorial"
    shutil.copytree(
        Path(amtutorial.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    return package


TWICE = """
import amtutorial
from amtutorial import training
ask = lambda: training.trained_model([[1., 0.], [0., 1.]], iterations=1, device="cpu")
ask()
training.train_loop = None # not needed again
ask()
print(amtutorial.__file__)
"""


def test_the_source_of_modules_is_in_the_key(folder, tmp_path):
    "In a copy of the package: each module that shapes the network, and none that does not."
    package = copy_of_the_package(tmp_path)
    script = """
import amtutorial, sys
from pathlib import Path
from amtutorial.cache import _key
from unittest.mock import patch
from amtutorial import training
package = Path(amtutorial.__file__).parent
names = []
def remember(name, config, modules, new, train):
    names.append(_key(config, modules))
    return new()
with patch.object(training, "cached", remember):
    ask = lambda: training.trained_model([[1., 0.], [0., 1.]], iterations=1, device="cpu")
    ask()
    for module in ("core", "sde", "scorenet", "training", "figures", "likelihood"):
        source = package / f"{module}.py"
        text = source.read_text()
        source.write_text(text + "# another line")
        ask()
        source.write_text(text)
    ask()
print(amtutorial.__file__)
print(*(name == names[0] for name in names))
"""
    where, same = run(script, package.parent)
    assert Path(where).parent == package
    assert same == "True False False False False True True True"


def test_without_any_source(folder, tmp_path):
    "A package of compiled files alone: the version stands for the source."
    package = copy_of_the_package(tmp_path)
    assert compileall.compile_dir(package, legacy=True, quiet=1)
    for source in package.glob("*.py"):
        source.unlink()
    assert run(TWICE, package.parent) == [str(package / "__init__.pyc")]
    kept(folder)


# Files that are not ours

FOREIGN = {
    "empty": (b"", "it is damaged"),
    "pickle": (pickle.dumps(dict(weight=1)), "it is damaged"),
    "noise": (os.urandom(4000), "it is damaged"),
    "no key": (save({"weight": torch.zeros(3, 2)}), "it holds another model"),
    "another key": (save({"weight": torch.zeros(3, 2)}, {"key": "x"}), "it holds another model"),
}


def check_replaced(folder, trainer, content, why, capsys):
    trainer.ask()
    path = kept(folder)
    path.write_bytes(content(path) if callable(content) else content)
    again = trainer.ask()
    said = capsys.readouterr().out
    assert said == f"The cached model {path.name} is not used, because {why}: training it again.\n"
    assert trainer.count == 2 and kept(folder) == path
    assert equal(trainer.ask(), again) and trainer.count == 2  # replaced by a good one
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_reported_and_replaced(folder, trainer, kind, capsys):
    check_replaced(folder, trainer, *FOREIGN[kind], capsys)


def cut(data):
    return data[: len(data) // 2]


def flip(data):
    "The last bit of the last weight."
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("harm", [cut, flip])
def test_harmed_files_are_reported_and_replaced(folder, trainer, harm, capsys):
    harmed = lambda path: harm(path.read_bytes())
    check_replaced(folder, trainer, harmed, "it is damaged", capsys)


def used(path, key, data):
    "Whether a file with these bytes is taken for the model."
    path.write_bytes(data)
    try:
        return cache._load(path, key, lambda: torch.nn.Linear(2, 3)) is not None
    except cache._Unusable:
        return False


def test_no_harm_goes_unnoticed(folder, trainer):
    "Cut at every byte, longer by some, every single bit flipped, in header and weights."
    trainer.ask()
    path = kept(folder)
    good = path.read_bytes()
    with safe_open(path, "pt") as f:
        key = f.metadata()["key"]
    bits = [bytes([good[i] ^ 1 << b]) for i in range(len(good)) for b in range(8)]
    flipped = [good[: i // 8] + bit + good[i // 8 + 1 :] for i, bit in enumerate(bits)]
    cuts = [good[:n] for n in range(len(good))]
    longer = [good + b"\0", good + b"\0" * 8, good + good]
    assert not any(used(path, key, data) for data in [*cuts, *longer, *flipped])
    assert used(path, key, good) and len(flipped) > 1000


@pytest.mark.parametrize(
    "state",
    [dict(weight=torch.zeros(3, 2)), dict(weight=torch.zeros(2, 2), bias=torch.zeros(3))],
    ids=["missing", "misshapen"],
)
def test_weights_that_do_not_fit(folder, trainer, state, capsys):
    def right_key(path):
        with safe_open(path, "pt") as f:
            return save(state, f.metadata() | dict(sum=cache._contents(save(state))[1]))

    check_replaced(folder, trainer, right_key, "its weights do not fit the network", capsys)


def test_a_pickle_is_not_opened(folder, trainer):
    "A file that would do harm if it were unpickled."
    trainer.ask()
    mark = folder / "harm.lock"

    class Harm:
        def __reduce__(self):
            return Path.touch, (mark,)

    kept(folder).write_bytes(pickle.dumps(Harm()))
    trainer.ask()
    assert trainer.count == 2 and not mark.exists()
    pickle.loads(pickle.dumps(Harm()))
    assert mark.exists()  # it would have


def test_the_file_holds_numbers_and_a_key(folder):
    trained_model(circle_patterns(2), **TINY)
    path = kept(folder)
    with safe_open(path, "pt") as f:
        metadata = f.metadata()
    assert metadata.keys() == {"key", "sum"} and metadata["key"].startswith(path.stem[3:])
    header = path.read_bytes()
    size = int.from_bytes(header[:8], "little")
    assert "output.bias" in json.loads(header[8 : 8 + size])


# Caches that fail


def test_the_folder(monkeypatch):
    monkeypatch.setenv("AMTUTORIAL_CACHE", "/somewhere/else")
    assert cache_dir() == Path("/somewhere/else")
    for unset in ("", None):
        monkeypatch.setenv("AMTUTORIAL_CACHE", "") if unset == "" else monkeypatch.delenv(
            "AMTUTORIAL_CACHE"
        )
        assert cache_dir().name == "amtutorial" and cache_dir().is_absolute()


def test_without_cache_the_disk_is_left_alone(folder):
    trained_model(circle_patterns(2), cache=False, **TINY)
    assert not folder.exists()


def check_not_kept(trainer, why, capsys, **asked):
    "The model is given out, and one line says why it is not kept."
    trainer.count = 0
    assert isinstance(trainer.ask(**asked), torch.nn.Linear) and trainer.count == 1
    said = capsys.readouterr().out
    assert f"{why}" in said and said.endswith("): trained, not kept.\n") and said.count("\n") == 1


def raises(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def a_file(folder):
    folder.write_text("mine")


def below_a_file(folder):
    folder.parent.rmdir()
    folder.parent.write_text("mine")


def a_link_to_nothing(folder):
    folder.symlink_to(folder / "x")


PLACES = {a_file: "File exists", below_a_file: "Not a directory", a_link_to_nothing: "File exists"}


@pytest.mark.parametrize("place", PLACES)
def test_no_folder(place, trainer, monkeypatch, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    folder = tmp_path / "in" / "kept"
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(folder))
    place(folder)
    before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")}
    check_not_kept(trainer, PLACES[place], capsys)
    assert {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")} == before


NO_SPACE = OSError(28, "No space left on device")

@pytest.mark.parametrize("where, name", [(Path, "mkdir"), (Path, "write_bytes"), (os, "replace")])
def test_a_full_disk(folder, trainer, where, name, monkeypatch, capsys):
    "Nothing half-written stays."
    real = getattr(where, name)

    def full(path, *args, **kwargs):
        if name == "write_bytes":
            real(path, args[0][:10])
        raise NO_SPACE

    monkeypatch.setattr(where, name, full)
    check_not_kept(trainer, "No space left on device", capsys)
    assert not folder.exists() or [p.suffix for p in folder.iterdir()] == [".lock"]


def test_no_home(trainer, monkeypatch, capsys):
    monkeypatch.delenv("AMTUTORIAL_CACHE", raising=False)
    error = RuntimeError("Could not determine home directory.")
    monkeypatch.setattr(cache.platformdirs, "user_cache_dir", raises(error))
    check_not_kept(trainer, error, capsys)
    monkeypatch.setattr(cache, "files", raises(OSError(5, "no module here")))
    check_not_kept(trainer, "[Errno 5] no module here", capsys)


def test_settings_that_json_cannot_write(folder, trainer, capsys):
    round = []
    round.append(round)
    for bad in dict(a={1, 2}), dict(a=round), {1: 2, "b": 3}, dict(a=object()), {(1, 2): 3}:
        trainer.ask(bad)
        assert capsys.readouterr().out.endswith("): trained, not kept.\n")
    assert trainer.count == 5 and not folder.exists()


def test_names_that_no_file_can_have(folder, trainer, capsys):
    check_not_kept(trainer, "File name too long", capsys, name="x" * 300)
    check_not_kept(trainer, "embedded null byte", capsys, name="x\0")
    assert not list(folder.iterdir())


def test_weights_that_cannot_be_written(folder, trainer, capsys):
    "Two names of one tensor."
    one = torch.nn.Linear(2, 2)
    both = torch.nn.ModuleList([one, one])
    assert cached("tied", {}, ["core"], trainer.new, lambda: both) is both
    assert capsys.readouterr().out.endswith("trained, not kept.\n")
    assert [p.suffix for p in folder.iterdir()] == [".lock"]


@pytest.fixture
def read_only(monkeypatch):
    "A folder in which we may not write, also where the tests run as root."
    place = Path(tempfile.mkdtemp())
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(place))
    yield place
    place.chmod(stat.S_IRWXU)
    shutil.rmtree(place)


class Nobody:
    "Within, a user without rights, for whom the folder has these."

    def __init__(self, place, rights=0o555):
        self.place, self.rights = place, rights

    def __enter__(self):
        self.place.chmod(self.rights)
        self.root = os.geteuid() == 0
        if self.root:
            os.seteuid(65534)
        assert not os.access(self.place, os.W_OK, effective_ids=True)

    def __exit__(self, *_):
        if self.root:
            os.seteuid(0)


needs_users = pytest.mark.skipif(
    not hasattr(os, "geteuid"), reason="needs users and rights as Unix has them")


@needs_users
@pytest.mark.parametrize("rights", [0o555, 0o444, 0])
def test_an_empty_folder_of_somebody_else(read_only, trainer, rights, capsys):
    "Not to be written; not even to be entered; not to be looked at."
    with Nobody(read_only, rights):
        check_not_kept(trainer, "Permission denied", capsys)
    assert not list(read_only.iterdir())


@needs_users
def test_models_of_somebody_else(read_only, trainer, capsys):
    "What may be read is read, not trained again; what may not is trained."
    first = trainer.ask()
    path = kept(read_only)
    before = sorted(read_only.iterdir())
    with Nobody(read_only):
        assert equal(trainer.ask(), first) and trainer.count == 1
    assert capsys.readouterr().out == "" and sorted(read_only.iterdir()) == before
    path.write_bytes(b"")
    path.chmod(0o444)
    with Nobody(read_only):
        trainer.ask()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "it is damaged" in said[0] and "Permission denied" in said[1]
    path.chmod(0)
    with Nobody(read_only):
        trainer.ask()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "it cannot be read (Permission denied)" in said[0]
    assert trainer.count == 3 and sorted(read_only.iterdir()) == before


LOCKS = [NotImplementedError("no flock here"), OSError(37, "No locks available"), NO_SPACE]


@pytest.mark.parametrize("error", LOCKS, ids=str)
def test_without_locks(folder, trainer, error, monkeypatch, capsys):
    "Two may then train the same; what is kept is whole all the same."
    monkeypatch.setattr(cache.FileLock, "acquire", raises(error))
    first = trainer.ask()
    assert equal(trainer.ask(), first) and trainer.count == 1 and kept(folder)
    assert capsys.readouterr().out == ""


def make_folder(path):
    path.mkdir()


def make_pipe(path):
    os.mkfifo(path)


def make_link(path):
    path.symlink_to(path.with_name("nothing.lock"))


SHAPES = [make_folder, make_link] + [make_pipe] * hasattr(os, "mkfifo")


@pytest.mark.parametrize("make", SHAPES)
def test_what_is_no_file(folder, trainer, make, capsys):
    "In the place of the lock it does no harm; in the model's it is told, and nobody hangs."
    path = where_it_will_be(folder, trainer)
    path.with_suffix(".lock").unlink()
    make(path.with_suffix(".lock"))
    trainer.ask()
    assert trainer.count == 1 and capsys.readouterr().out == ""
    path.unlink()
    make(path)
    trainer.ask()
    said = capsys.readouterr().out.splitlines()
    assert trainer.count == 2 and "it is damaged: training it again." in said[0]
    if make is make_folder:
        assert len(said) == 2 and "(Is a directory): trained, not kept." in said[1]
    else:
        assert len(said) == 1 and trainer.ask() and trainer.count == 2  # replaced
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("closed")])
def test_nobody_listens(folder, trainer, error, monkeypatch):
    folder.write_text("mine")
    monkeypatch.setattr("builtins.print", raises(error))
    assert isinstance(trainer.ask(), torch.nn.Linear)


def test_lines_are_said_at_once(tmp_path):
    "Also where output is collected first, as in files and pipes."
    with open(tmp_path / "log", "w") as f, redirect_stdout(f):
        cache._say("Waiting.")
        assert (tmp_path / "log").read_text() == "Waiting.\n"


def test_a_system_that_does_not_tell_who_holds_a_lock(tmp_path, monkeypatch):
    with FileLock(tmp_path / "lock"):
        monkeypatch.setattr(Path, "read_text", raises(FileNotFoundError(2, "no /proc")))
        assert cache._holder(tmp_path / "lock") == "another process"
    assert cache._holder(tmp_path / "nothing") == "another process"


# Files written in one step


def test_parts_of_killed_processes_are_cleared_away(tmp_path):
    "Those of the same file, once it is there; not those of others, and nothing else."
    path = tmp_path / "a[1].json"
    names = "a[1].0f.part", "a[1].x.part", "b.0f.part", "a1.0f.part", "a[1].json.bak"
    for name in names:
        (tmp_path / name).touch()
    write_in_one_step(path, b"1")
    assert {p.name for p in tmp_path.iterdir()} == {path.name, *names[2:]}


def test_two_write_the_same_file(tmp_path, monkeypatch):
    "The first clears the part of the second away; then the file is there."
    path, real = tmp_path / "a.json", os.replace
    other = lambda: (monkeypatch.setattr(os, "replace", real), write_in_one_step(path, b"1"))
    monkeypatch.setattr(os, "replace", lambda *ends: (other(), real(*ends)))
    write_in_one_step(path, b"2")
    assert path.read_bytes() == b"1" and list(tmp_path.iterdir()) == [path]


def test_writing_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    for error in NO_SPACE, KeyboardInterrupt():
        monkeypatch.setattr(os, "replace", raises(error))
        with pytest.raises(type(error)):
            write_in_one_step(path, b"new")
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        write_in_one_step(tmp_path / "none" / "a.json", b"new")


def test_nothing_is_hidden(folder, trainer):
    "What goes wrong in the training itself is told as it is."

    def fail():
        raise ValueError("bad settings")

    with pytest.raises(ValueError, match="bad settings"):
        cached("tiny", dict(seed=1), ["core"], trainer.new, fail)


def test_bad_requests_touch_nothing(folder):
    for bad in (dict(iterations=0), dict(seed=-1), dict(sigma=0), dict(device="abacus")):
        with pytest.raises(ValueError):
            trained_model(circle_patterns(2), **TINY | bad)
    assert not folder.exists()


def test_the_loop_is_called_with_the_settings(folder, monkeypatch):
    "What is in the key is what the training gets."
    seen = {}

    def loop(patterns, vesde, iterations, **options):
        seen.update(options, sigma=vesde.sigma, iterations=iterations, patterns=patterns)
        return training._new_network(patterns, vesde, 0, readout=True)

    monkeypatch.setattr(training, "train_loop", loop)
    trained_model(circle_patterns(2), 0.5, iterations=7, seed=3, device="cpu")
    assert torch.equal(seen.pop("patterns"), circle_patterns(2))
    assert seen == dict(device=torch.device("cpu"), seed=3, sigma=0.5, iterations=7)


def test_modules_and_pytorch_are_in_the_name(monkeypatch):
    "Also where files of another PyTorch could not be read anyway."
    names = [cache._key({}, modules) for modules in (("core",), ("sde",), ("core", "sde"))]
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert len({*names, cache._key({}, ("core",))}) == 4
