"""What the tests share: the checkout, the notebooks' tool, and two ways to state a fault."""
import importlib.util
from pathlib import Path

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
