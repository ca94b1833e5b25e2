"""The model cache under stress: several processes at once, folders that cannot be written, and no pickles."""
import os, subprocess, sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from amtutorial.data import circle_patterns
from amtutorial.training import cache_dir, trained_model

TRAIN = """
import hashlib
from amtutorial.data import circle_patterns
import amtutorial.training as training
real, count = training.train_loop, []
def counted(*args, **kwargs):
    count.append(1)
    return real(*args, **kwargs)
training.train_loop = counted
training.inspect.getsource = lambda f: f.__name__
model = training.trained_model(circle_patterns(3), iterations=60, device="cpu")
digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest()
print(len(count), digest)
"""

def test_several_processes_train_once(tmp_path):
    env = os.environ | dict(AMTUTORIAL_CACHE=str(tmp_path), TQDM_DISABLE="1", OMP_NUM_THREADS="1")
    run = lambda _: subprocess.run([sys.executable, "-c", TRAIN], env=env, capture_output=True, text=True, check=True).stdout.split()
    with ThreadPoolExecutor(3) as pool: counts, digests = zip(*pool.map(run, range(3)))
    assert sum(map(int, counts)) == 1 and len(set(digests)) == 1
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 and not list(tmp_path.glob("*.part"))

def test_everything_is_in_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    xi = circle_patterns(3)
    for options in [{}, dict(sigma=2.), dict(iterations=3), dict(seed=1)]: trained_model(xi, **{"iterations": 2, "device": "cpu", **options})
    trained_model(xi + 1e-3, iterations=2, device="cpu")
    monkeypatch.setattr("amtutorial.training.inspect.getsource", lambda f: "other code")
    trained_model(xi, iterations=2, device="cpu")
    assert len(list(tmp_path.glob("*.safetensors"))) == 6

def test_without_cache_the_disk_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(tmp_path/"nothing"))
    trained_model(circle_patterns(2), iterations=2, device="cpu", cache=False)
    assert not (tmp_path/"nothing").exists()

@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", os.urandom(4000)], ids=["empty", "pickle", "noise"])
def test_foreign_files_are_reported_in_one_line(tmp_path, monkeypatch, capsys, content):
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(tmp_path))
    first = trained_model(circle_patterns(2), iterations=2, device="cpu")
    path, = tmp_path.glob("*.safetensors")
    path.write_bytes(content)
    again = trained_model(circle_patterns(2), iterations=2, device="cpu")
    said = capsys.readouterr().out.strip().splitlines()
    assert len(said) == 1 and path.name in said[0]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
