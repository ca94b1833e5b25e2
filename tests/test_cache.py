"""The cache of trained networks: one training for one setting, and never a stale, foreign or
half-written file. A cache that fails costs time, not the model."""
import compileall
import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save

import amtutorial
from amtutorial import cache, training
from amtutorial.cache import cache_dir, cached
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


def test_waiting_is_said(folder, trainer, capsys):
    trainer.ask()
    path = kept(folder)
    with FileLock(path.with_suffix(".lock")):
        waiting = threading.Thread(target=trainer.ask)
        waiting.start()
        time.sleep(1.3)
        said = capsys.readouterr().out
        assert waiting.is_alive()
    waiting.join(10)
    assert said == f"Waiting for another process, which trains {path.stem}.\n"
    assert trainer.count == 1 and not waiting.is_alive()


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


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_cut_files_are_reported_and_replaced(folder, trainer, share, capsys):
    def cut(path):
        content = path.read_bytes()
        return content[: int(share * len(content))]

    check_replaced(folder, trainer, cut, "it is damaged", capsys)


@pytest.mark.parametrize(
    "state",
    [dict(weight=torch.zeros(3, 2)), dict(weight=torch.zeros(2, 2), bias=torch.zeros(3))],
    ids=["missing", "misshapen"],
)
def test_weights_that_do_not_fit(folder, trainer, state, capsys):
    def right_key(path):
        with safe_open(path, "pt") as f:
            return save(state, f.metadata())

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
        assert list(f.metadata()) == ["key"] and f.metadata()["key"].startswith(path.stem[3:])
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


def test_a_file_where_the_folder_should_be(folder, trainer, capsys):
    folder.write_text("mine")
    model = trainer.ask()
    assert isinstance(model, torch.nn.Linear) and trainer.count == 1
    said = capsys.readouterr().out
    assert said == f"The cache {folder} cannot be used (File exists): trained, not kept.\n"
    assert folder.read_text() == "mine"


def test_a_folder_below_a_file(folder, trainer, monkeypatch, capsys):
    folder.write_text("mine")
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(folder / "below"))
    trainer.ask()
    assert "cannot be used (Not a directory): trained, not kept." in capsys.readouterr().out


@pytest.fixture
def read_only(monkeypatch):
    "A folder in which we may not write, also where the tests run as root."
    place = Path(tempfile.mkdtemp())
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(place))
    yield place
    place.chmod(stat.S_IRWXU)
    shutil.rmtree(place)


class Nobody:
    "Within, a user without rights."

    def __init__(self, place):
        self.place = place

    def __enter__(self):
        self.place.chmod(0o555)
        self.root = os.geteuid() == 0
        if self.root:
            os.seteuid(65534)

    def __exit__(self, *_):
        if self.root:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users and rights as Unix has them")
@pytest.mark.parametrize("filled", [False, True], ids=["empty", "with a model"])
def test_a_read_only_folder(read_only, trainer, filled, capsys):
    if filled:
        trainer.ask()
    before = sorted(read_only.iterdir())
    with Nobody(read_only):
        assert not os.access(read_only, os.W_OK, effective_ids=True)
        model = trainer.ask()
    assert isinstance(model, torch.nn.Linear) and trainer.count == 1 + filled
    said = capsys.readouterr().out
    assert said.startswith(f"The cache {read_only} cannot be used (Permission denied)")
    assert said.count("\n") == 1 and sorted(read_only.iterdir()) == before


def test_a_disk_without_locks(folder, trainer, monkeypatch, capsys):
    def no_locks(self, *args, **kwargs):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(cache.FileLock, "acquire", no_locks)
    trainer.ask()
    assert "cannot be used (no flock here): trained, not kept." in capsys.readouterr().out


def test_a_full_disk(folder, trainer, monkeypatch, capsys):
    "The model is given out; nothing half-written stays."

    def full(self, content):
        with open(self, "wb") as f:
            f.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    model = trainer.ask()
    assert isinstance(model, torch.nn.Linear) and trainer.count == 1
    said = capsys.readouterr().out
    assert said == f"The trained model could not be kept in {folder} (No space left on device).\n"
    assert [p.suffix for p in folder.iterdir()] == [".lock"]


def test_a_folder_where_the_file_should_be(folder, trainer, capsys):
    trainer.ask()
    path = kept(folder)
    path.unlink()
    path.mkdir()
    assert isinstance(trainer.ask(), torch.nn.Linear)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "it is damaged" in said[0] and "could not be kept" in said[1]
    assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".lock"}


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
