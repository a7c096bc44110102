"""Print the folder to put on PYTHONPATH."""

from tests.simulated import build

print(build())  # noqa: T201
