"""Read a pickle without running anything that it names.

A pickle is a program for a small stack machine. `load` plays that machine over the opcodes that `pickletools` finds,
and builds nothing but dicts, lists, tuples, texts, bytes and numbers. A name of a class or function is looked up in a
table of the caller's own; a name that the table lacks ends the reading. torch's own restricted reader stays out: it
recurses (a deep tuple ends the process), and it makes tensors of memory that nothing has filled.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final

MAX_PICKLE: Final = 128 << 20
"""Bytes of one pickle; the names and places of a million tensors take less."""

MAX_TEXT: Final = 1 << 20
"""Bytes of one text or number in a pickle."""


class PickleError(ValueError):
    """Report a pickle that is damaged, or too large to be what it says."""


class CodeError(PickleError):
    """Report a pickle that names something to call or to make which the table lacks; `args` hold its name."""


@dataclass(frozen=True, slots=True)
class Function:
    """Stand for a callable that a pickle names: `make` takes its arguments and gives what stands for the result."""

    make: Callable[..., object]


@dataclass(frozen=True, slots=True, eq=False)
class Inert:
    """Stand for a value that nobody reads, such as a set; `kind` names it in messages."""

    kind: str


_MARK: Final = Inert("mark")


class _Bounded:
    """Read a stream up to MAX_PICKLE bytes from where it stands, never more than MAX_TEXT at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, MAX_PICKLE

    def read(self, count: int) -> bytes:
        if not 0 <= count <= MAX_TEXT:
            raise PickleError(f"a value of {count} bytes, the limit is {MAX_TEXT}")
        return self._counted(self._stream.read(count))

    def readline(self) -> bytes:
        return self._counted(self._stream.readline(MAX_TEXT))

    def _counted(self, found: bytes) -> bytes:
        self._left -= len(found)
        if self._left < 0:
            raise PickleError(f"a pickle of more than {MAX_PICKLE} bytes")
        return found


def load(stream: BinaryIO, names: Mapping[str, object], persistent: Callable[[object], object]) -> object:
    """Return what a pickle describes, and leave the stream behind its end.

    `names` maps "module.name" to a Function, or to whatever stands for a value of that name; `persistent` gives what
    a persistent id stands for. Raise CodeError for a name that `names` lacks, and PickleError for a damaged pickle.
    """
    machine = _Machine(names, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(_Bounded(stream)):  # type: ignore[arg-type]
            machine.do(opcode.name, argument)
        return machine.stack.pop()
    except PickleError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError) as error:
        raise PickleError(f"{type(error).__name__}: {error}") from None


class _Machine:
    """Hold the stack and the memo of one pickle; `do` carries out one opcode."""

    def __init__(self, names: Mapping[str, object], persistent: Callable[[object], object]) -> None:
        self.names, self.persistent = names, persistent
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}

    def do(self, opcode: str, argument: object) -> None:
        if opcode in _VALUES:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _PUTS:
            self.memo[_number(argument)] = self.stack[-1]
        elif opcode in _GETS:
            self.stack.append(self.memo[_number(argument)])
        elif opcode not in _IGNORED:
            action = _ACTIONS.get(opcode)
            if action is None:
                raise PickleError(f"the opcode {opcode}, which no torch file has")
            action(self, argument)

    def pop(self) -> object:
        value = self.stack.pop()
        if value is _MARK:
            raise PickleError("a mark where a value is due")
        return value

    def pop_to_mark(self) -> list[object]:
        marks = (at for at in range(len(self.stack) - 1, -1, -1) if self.stack[at] is _MARK)
        at = next(marks, None)
        if at is None:
            raise PickleError("no mark where one is due")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def push(self, value: object) -> None:
        self.stack.append(value)

    # -- actions ---------------------------------------------------------------------------------------

    def mark(self, _: object) -> None:
        self.push(_MARK)

    def drop(self, _: object) -> None:
        self.stack.pop()

    def drop_to_mark(self, _: object) -> None:
        self.pop_to_mark()

    def repeat(self, _: object) -> None:
        self.push(self.stack[-1])

    def memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def make_list(self, _: object) -> None:
        self.push(self.pop_to_mark())

    def make_empty_list(self, _: object) -> None:
        self.push([])

    def make_empty_dict(self, _: object) -> None:
        self.push({})

    def make_tuple(self, _: object) -> None:
        self.push(tuple(self.pop_to_mark()))

    def make_one(self, _: object) -> None:
        self.push((self.pop(),))

    def make_two(self, _: object) -> None:
        second, first = self.pop(), self.pop()
        self.push((first, second))

    def make_three(self, _: object) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self.push((first, second, third))

    def make_dict(self, _: object) -> None:
        items = self.pop_to_mark()
        self.push({})
        self._set(items)

    def append(self, _: object) -> None:
        value = self.pop()
        self._list().append(value)

    def extend(self, _: object) -> None:
        values = self.pop_to_mark()
        self._list().extend(values)

    def set_item(self, _: object) -> None:
        value, key = self.pop(), self.pop()
        self._set([key, value])

    def set_items(self, _: object) -> None:
        self._set(self.pop_to_mark())

    def make_empty_set(self, _: object) -> None:
        self.push(Inert("set"))

    def add_items(self, _: object) -> None:
        self.pop_to_mark()

    def make_frozen_set(self, _: object) -> None:
        self.pop_to_mark()
        self.push(Inert("frozenset"))

    def find(self, argument: object) -> None:
        """Look a name up that the opcode itself holds: "module name"."""
        module, _, name = str(argument).partition(" ")
        self._find(module, name)

    def find_on_stack(self, _: object) -> None:
        name, module = self.pop(), self.pop()
        self._find(str(module), str(name))

    def call(self, _: object) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise PickleError("a call of what is no function")
        self.push(function.make(*arguments))

    def build(self, _: object) -> None:
        """Drop the attributes of a dict, such as `_metadata` of a state dict; nothing else may have any."""
        self.pop()
        if not isinstance(self.stack[-1], dict | Inert):
            raise PickleError("attributes of what has none")

    def persist(self, argument: object) -> None:
        self.push(self.persistent(argument))

    def persist_from_stack(self, _: object) -> None:
        self.push(self.persistent(self.pop()))

    def _find(self, module: str, name: str) -> None:
        whole = f"{module}.{name}"
        if whole not in self.names:
            raise CodeError(whole)
        self.push(self.names[whole])

    def _list(self) -> list[object]:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise PickleError("an item for what is no list")
        return target

    def _set(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleError("an item for what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # The hash of a deep tuple would overflow the stack of C.
            target[key if isinstance(key, str | int | float | bytes | None) else Inert(type(key).__name__)] = value


def _number(argument: object) -> int:
    return int(argument)  # type: ignore[call-overload, no-any-return]


_VALUES: Final = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)
_CONSTANTS: Final[Mapping[str, object]] = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()
}  # fmt: skip
_PUTS: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS: Final = frozenset({"GET", "BINGET", "LONG_BINGET"})
_IGNORED: Final = frozenset({"PROTO", "FRAME", "STOP"})
_ACTIONS: Final[Mapping[str, Callable[[_Machine, object], None]]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_to_mark,
    "DUP": _Machine.repeat,
    "MEMOIZE": _Machine.memoize,
    "LIST": _Machine.make_list,
    "EMPTY_LIST": _Machine.make_empty_list,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    "TUPLE": _Machine.make_tuple,
    "TUPLE1": _Machine.make_one,
    "TUPLE2": _Machine.make_two,
    "TUPLE3": _Machine.make_three,
    "DICT": _Machine.make_dict,
    "EMPTY_DICT": _Machine.make_empty_dict,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "EMPTY_SET": _Machine.make_empty_set,
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.make_frozen_set,
    "GLOBAL": _Machine.find,
    "STACK_GLOBAL": _Machine.find_on_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persist,
    "BINPERSID": _Machine.persist_from_stack,
}
