"""Join a Ray cluster, or start one on this machine, and count what runs there at once."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from lorabake.errors import SurroundingsError, first_line
from lorabake.interrupts import STOPPING
from lorabake.settings import ADDRESS, ENGINE

VARIABLE: Final = "RAY_ADDRESS"
"""The variable that names a cluster, where nothing else does; Ray sets it for its jobs."""

STORAGE: Final = "lorabake_storage"
"""The resource of a node that bounds how many pieces of work it reads and writes at once."""

PATIENCE: Final = 5.0
"""Seconds to wait for a cluster's answer."""

LOOPBACK: Final = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
"""The address of a cluster that lorabake starts, which no other machine reaches.

For 127.0.0.1, Ray takes the address of the machine.
"""

STORE: Final = 80 << 20
"""Bytes of the object store of a cluster that lorabake starts: nearly the smallest that Ray takes."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Say what one piece of work takes of a node: cores, GPUs, bytes of memory, and a share of its storage."""

    cpus: int = 1
    gpus: int = 0
    memory: int = 0
    storage: bool = False

    def options(self) -> dict[str, Any]:
        """Write the demand as options of a Ray task, tried once and spread over the nodes."""
        options: dict[str, Any] = {"num_cpus": self.cpus, "max_retries": 0, "scheduling_strategy": "SPREAD"}
        if self.gpus:
            options["num_gpus"] = self.gpus
        if self.memory:
            options["memory"] = self.memory
        if self.storage:
            options["resources"] = {STORAGE: 1}
        return options

    def fits(self, resources: Mapping[str, float]) -> int:
        """Return how many pieces of work a node with these resources runs at once."""
        needed = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory, STORAGE: int(self.storage)}
        return min(int(resources.get(name, 0) // count) for name, count in needed.items() if count)


@dataclass(frozen=True, slots=True)
class Node:
    """Name a machine of a cluster: its number there, its address, and its resources."""

    number: str
    address: str
    resources: Mapping[str, float]


def nodes(ray: ModuleType) -> list[Node]:
    """List the nodes that are alive."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"]) for node in alive]


def load_ray() -> ModuleType:
    """Import Ray; raise SurroundingsError where it is missing."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of a bake is told to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise SurroundingsError(
            "ray is not installed", "Install what the engine takes: pip install 'lorabake[ray]'"
        ) from None
    module: ModuleType = ray
    return module


@contextmanager
def joined(address: str | None, cpus: int | None) -> Iterator[ModuleType]:
    """Join the cluster at an address, that of the environment, or a new one on this machine with so many cores.

    Yield Ray itself. Raise SurroundingsError where there is no Ray, or no answer.
    """
    ray = load_ray()
    address = address or os.environ.get(VARIABLE) or None
    settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        settings |= {
            "address": "local",
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": STORE,
            "_node_ip_address": LOOPBACK,
        }
    else:
        _check_answers(address)
        settings["address"] = address
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    try:
        try:
            ray.init(**settings)
        except (ConnectionError, OSError, RuntimeError, ValueError, TimeoutError) as error:
            raise SurroundingsError(f"{address or 'ray'}: no cluster can be joined: {first_line(error)}") from None
        finally:
            for number, handler in handlers.items():  # Ray puts its own in their place
                with suppress(ValueError):
                    signal.signal(number, handler)
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise SurroundingsError unless something answers at an address: Ray itself would wait for a minute."""
    advice = f"Start the cluster, or leave out {ADDRESS}: then one is started on this machine."
    if address.startswith("ray://"):
        raise SurroundingsError(
            f"{address}: is the address of Ray's client, and the tasks of a batch need a node",
            f"Run this on a machine of the cluster, or by ray job submit, with {ENGINE.of('ray')}.",
        )
    match = re.fullmatch(r"\[?([^\]]+?)\]?:(\d+)", address)
    if match is None:
        return
    until = time.monotonic() + PATIENCE
    try:
        socket.create_connection((match[1], int(match[2])), timeout=max(until - time.monotonic(), 0.1)).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SurroundingsError(f"{address}: no cluster answers there: {why}", advice) from None
