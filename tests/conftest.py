"""Settings of the whole suite."""

from hypothesis import settings

# The same examples in every run: a failure in CI can be repeated, and no run fails by luck.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
