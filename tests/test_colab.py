"""Every Colab copy runs from an empty folder against the installed wheel, with Colab simulated.

Slow, so by itself: `make colab`.
"""

import os

import pytest
from helpers import ROOT, call, install_wheel

COPIES = sorted((ROOT / "tutorial_ipynbs").glob("*.ipynb"))
RUN = """
import sys, types
path, site = sys.argv[1:]
sys.modules["google.colab"] = types.ModuleType("google.colab")
from execnb.nbio import read_nb
from execnb.shell import CaptureShell
shell, installed = CaptureShell(), []
shell.register_magic_function(installed.append, "line", "pip")
try: shell.run_all(read_nb(path), exc_stop=True)
except BaseException: sys.exit(shell.prettytb(path))
import amtutorial
assert amtutorial.__file__.startswith(site), amtutorial.__file__
assert len(installed) == 1 and "git+https://" in installed[0], installed
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The wheel, built by way of the sdist, installed in a folder of its own."
    return install_wheel(tmp_path_factory)


@pytest.mark.parametrize("path", COPIES, ids=lambda p: p.stem)
def test_copy_runs_in_colab(path, site, tmp_path):
    env = os.environ | dict(PYTHONPATH=str(site), TQDM_DISABLE="1", OMP_NUM_THREADS="1")
    call("-c", RUN, path, site, cwd=tmp_path, env=env)
