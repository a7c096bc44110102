"""Speak with a worker process through a socket: pickled messages, and errors that survive the way."""

from __future__ import annotations

import pickle
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from lorabake.batch.engines import Telling, Work
from lorabake.errors import InternalError, LorabakeError, first_line, where
from lorabake.machine import exhausted


@dataclass(frozen=True, slots=True)
class Packed:
    """Hold an error as its class and its lines, since a class's constructor may want something else."""

    kind: type[LorabakeError]
    lines: tuple[str, ...]

    def error(self) -> LorabakeError:
        """Return the error."""
        error = self.kind.__new__(self.kind, *self.lines)
        error.args = self.lines
        return error


def packed(error: BaseException) -> Packed:
    """Pack an error; whatever is not lorabake's own becomes an InternalError that says where it happened."""
    if not isinstance(error, LorabakeError):
        told = exhausted(error)
        own = f"{type(error).__name__}: {first_line(error)} ({where(error)})" if isinstance(error, Exception) else ""
        error = told or InternalError(own or type(error).__name__)
    return Packed(type(error), tuple(map(str, error.args)))


@dataclass(frozen=True, slots=True)
class Begun:
    """Hold the first message to a worker: how it words advice."""

    as_options: bool


@dataclass(frozen=True, slots=True)
class Counted:
    """Hold finished bytes."""

    count: int


@dataclass(frozen=True, slots=True)
class Warned:
    """Hold a warning."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """Hold how a piece of work ended."""

    result: object = None
    error: Packed | None = None


def done_by(work: Work, telling: Telling) -> Done:
    """Do a piece of work in this process, and pack how it ended; only an interrupt goes on."""
    try:
        return Done(work.run(telling))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Done(error=packed(error))


class Link:
    """Send and receive whole messages at one end of a socket; threads may send at the same time."""

    def __init__(self, end: socket.socket) -> None:
        self._connection: Connection[Any, Any] = Connection(end.detach())
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._connection.fileno()

    def send(self, message: object) -> None:
        """Send a message; raise OSError if the other end is gone."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._lock:
            self._connection.send_bytes(data)

    def receive(self) -> Any:
        """Wait for the next message; raise EOFError if the other end is gone."""
        try:
            return pickle.loads(self._connection.recv_bytes())
        except ConnectionResetError:
            raise EOFError from None

    @property
    def is_waiting(self) -> bool:
        """Tell whether a message, or the end, can be received without waiting."""
        return self._connection.poll(0)

    def close(self) -> None:
        """Close this end."""
        with suppress(OSError):
            self._connection.close()
