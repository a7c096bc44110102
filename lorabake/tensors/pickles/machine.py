"""Read a pickle without running anything that it names.

A pickle is a program for a small stack machine. `load` plays that machine over the opcodes that `pickletools` finds,
and builds nothing but dicts, lists, tuples, texts, bytes and numbers. It looks up names of classes and functions in
the caller's table; a name that the table lacks ends the reading. Nothing here is recursive, so no nesting can
overflow the stack. `load` counts its steps, so no pickle takes more than seconds, or more than about 100 bytes a
step.

The alternative is torch's own restricted reader, in a child process with limits. It is not used for these reasons. It
can be made to return uninitialised memory as a tensor (`torch.FloatTensor(1000)`), which no limit notices. It reads
every tensor into memory or a temporary file before any is needed. A child that imports torch takes two seconds for a
file; this reader takes a hundredth of a second. And a limit that kills a child cannot say what is wrong with the
file.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final

MAX_PICKLE: Final = 128 << 20
"""Most bytes of one pickle; the names and places of a million tensors take less."""

MAX_TEXT: Final = 1 << 20
"""Most bytes of one text or number in a pickle."""

MAX_STEPS: Final = 1 << 22
"""Most steps of one pickle: opcodes, and arguments of calls. A tensor takes 40, so 100,000 tensors fit."""


class PickleError(ValueError):
    """Report a pickle that is damaged or too large."""


class CodeError(PickleError):
    """Report a pickle that names a class or function that the table lacks; `args` hold the name."""


@dataclass(frozen=True, slots=True)
class Function:
    """Stand for a callable that a pickle names: `make` takes its arguments and returns what stands for the result."""

    make: Callable[..., object]


@dataclass(frozen=True, slots=True, eq=False)
class Inert:
    """Stand for a value that is not needed, such as a set; `kind` names it in messages."""

    kind: str


_MARK: Final = Inert("mark")


class Bounded:
    """Read a pickle inside a long file: at most MAX_PICKLE bytes from the stream's position, and MAX_TEXT at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, MAX_PICKLE

    def read(self, count: int) -> bytes:
        """Return the next bytes; raise PickleError if they are too many."""
        if not 0 <= count <= MAX_TEXT:
            raise PickleError(f"a value of {count} bytes, the limit is {MAX_TEXT}")
        return self._counted(self._stream.read(count))

    def readline(self) -> bytes:
        """Return the next line; raise PickleError if the pickle is too long."""
        return self._counted(self._stream.readline(MAX_TEXT))

    def _counted(self, raw: bytes) -> bytes:
        self._left -= len(raw)
        if self._left < 0:
            raise PickleError(f"a pickle of more than {MAX_PICKLE} bytes")
        return raw


def load(stream: BinaryIO | Bounded, names: Mapping[str, object], persistent: Callable[[object], object]) -> object:
    """Return what a pickle describes, and leave the stream at the pickle's end.

    `names` maps "module.name" to a Function, or to whatever stands for the value of that name. `persistent` returns
    what a persistent id stands for. Raise CodeError for a name that `names` lacks, and PickleError for a damaged
    pickle.
    """
    machine = _Machine(names, persistent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated escapes in its texts
            for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
                machine.left -= 1
                action = _ACTIONS.get(opcode.name)
                if action is None:
                    raise PickleError(f"the opcode {opcode.name}, which no torch file has")
                if machine.left < 0:
                    raise PickleError(f"a pickle of more than {MAX_STEPS} steps")
                action(machine, argument)
        return machine.pop()
    except PickleError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError) as error:
        raise PickleError(f"{type(error).__name__}: {error}") from None


class _Machine:
    """Hold the stack and the memo of one pickle; each action carries out one opcode with its argument."""

    def __init__(self, names: Mapping[str, object], persistent: Callable[[object], object]) -> None:
        self.names, self.persistent = names, persistent
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.left = MAX_STEPS

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

    def ignore(self, _: object) -> None:
        pass

    def put(self, number: object) -> None:
        place = _number(number)
        if not 0 <= place < MAX_STEPS:  # an attacker can choose numbers with equal hashes
            raise PickleError("a place in the memo that no pickle needs")
        self.memo[place] = self.stack[-1]

    def get(self, number: object) -> None:
        self.push(self.memo[_number(number)])

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
        """Look up a name that the opcode itself holds: "module name"."""
        module, _, name = str(argument).partition(" ")
        self._find(module, name)

    def find_on_stack(self, _: object) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("a name that is no text")
        self._find(module, name)

    def call(self, _: object) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise PickleError("a call of what is no function")
        self.left -= len(arguments) + sum(
            len(argument) for argument in arguments if isinstance(argument, tuple | list | dict)
        )
        self.push(function.make(*arguments))

    def build(self, _: object) -> None:
        """Drop attributes of a dict, such as a state dict's `_metadata`; nothing else may have attributes."""
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
            target[as_key(key)] = value


def as_key(key: object) -> object:
    """Return a dict's key itself if hashing it is safe, or else a placeholder.

    Hashing a deeply nested tuple overflows the C stack. An attacker can choose numbers with equal hashes.
    """
    is_small = isinstance(key, int) and abs(key) < MAX_STEPS
    return key if is_small or isinstance(key, str | bytes | None) else Inert(type(key).__name__)


def _number(argument: object) -> int:
    return int(argument)  # type: ignore[call-overload, no-any-return]


_VALUES: Final = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip
_ACTIONS: Final[Mapping[str, Callable[[_Machine, object], None]]] = {
    **dict.fromkeys(_VALUES, _Machine.push),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _Machine.ignore),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
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
