"""The properties of tests/test_properties.py, each with more worlds than `make test` tries."""
import test_properties
from hypothesis import settings

MANY = settings(max_examples=250, deadline=None, derandomize=True)
for name, property_ in vars(test_properties).items():
    if hasattr(property_, "hypothesis"):
        globals()[name] = MANY(property_)
