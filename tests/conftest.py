"""Settings of the whole suite."""

import os

from hypothesis import settings

# The same examples in every run: a failure in CI can be repeated, and no run fails by luck.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# The same bytes on every machine; test_simulated.py bakes on an accelerator.
os.environ.setdefault("LORABAKE_DEVICE", "cpu")
