"""What the tests share: the checkout, the notebooks' tool, faults stated, Python called."""
import importlib.util
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("notebooks", ROOT / "tools" / "notebooks.py")
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)
CFG = tool.settings(ROOT)

def none(faults):
    "Fails, and lists the faults, unless there are none."
    assert not faults, "\n" + "\n".join(map(str, faults))

def refused(f, *args, **kwargs):
    "The kind and message of the error with which `f` refuses its input; fails if it accepts it."
    try:
        f(*args, **kwargs)
    except (TypeError, ValueError) as e:
        return f"{type(e).__name__}: {e}"
    raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

def seeded(seed=0):
    "A generator of one's own."
    return torch.Generator().manual_seed(seed)

def call(*args, **kwargs):
    "What Python prints when called with `args`; fails, and shows its words, if it fails."
    command = [sys.executable, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, **kwargs)
    assert not done.returncode, done.stdout[-2000:] + done.stderr[-5000:]
    return done.stdout

def install_wheel(tmp_path_factory):
    "A folder that holds nothing but the wheel, built by way of the sdist and installed."
    dist, site = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    call("-m", "build", "--no-isolation", "--outdir", dist, ROOT)
    call("-m", "pip", "install", "--no-deps", "--target", site, *dist.glob("*.whl"))
    return site
