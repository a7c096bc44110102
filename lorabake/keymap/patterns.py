"""Match the regular expressions of a configuration in bounded time, whatever the patterns.

PEFT looks a module up by `re.match(rf"(.*\\.)?({pattern})$", module)`, and Python's `re`
backtracks: `(a+)+b` can take it for ever. The patterns of configurations need no backtracking. Here all patterns of a
field become one automaton. It reads a name once, from its end, and keeps the set of all states that it can be in (K.
Thompson, Regular expression search algorithm, CACM 11/6, 1968). Python's own parser reads the patterns, so each
construct means what it means in `re`. What an automaton cannot do, such as references to groups, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache

# The parser that `re.compile` calls. It has no public name and no types.
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, TypeVar

Value = TypeVar("Value")

MOST_STATES = 500_000
"""Most states of one automaton: one for each letter of a field's patterns, repetitions included."""

MOST_STEPS = 2_000_000
"""Most states visited while new sets of states are found; a known set costs nothing."""


AT_START, AT_END, AT_VERY_END = 1, 2, 4
"""Positions in a name, as bits."""

_ANCHORS = {
    sre.AT_BEGINNING: AT_START,
    sre.AT_BEGINNING_STRING: AT_START,
    sre.AT_END: AT_END,
    sre.AT_END_STRING: AT_VERY_END,
}
_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    sre.CATEGORY_DIGIT: str.isdecimal,
    sre.CATEGORY_NOT_DIGIT: lambda letter: not letter.isdecimal(),
    sre.CATEGORY_SPACE: str.isspace,
    sre.CATEGORY_NOT_SPACE: lambda letter: not letter.isspace(),
    sre.CATEGORY_WORD: lambda letter: letter.isalnum() or letter == "_",
    sre.CATEGORY_NOT_WORD: lambda letter: not (letter.isalnum() or letter == "_"),
}
_REFUSED = {
    sre.GROUPREF: "a reference to a group",
    sre.GROUPREF_EXISTS: "a condition",
    sre.ASSERT: "looking ahead or behind",
    sre.ASSERT_NOT: "looking ahead or behind",
    sre.ATOMIC_GROUP: "an atomic group",
    sre.POSSESSIVE_REPEAT: "a possessive repeat",
    sre.AT: "a boundary of words",
    sre.SUBPATTERN: "flags",
}
_REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT)


class PatternError(ValueError):
    """Report a pattern that cannot be matched; the message follows the name of its field."""


class Automaton:
    """Find the first of several patterns that matches a whole name, or the rest of it after one of its dots."""

    def __init__(self, patterns: Iterable[str], *, from_dots: bool = True) -> None:
        self._edges: list[tuple[str, Any, int]] = []
        self._steps = 0
        self._numbers: dict[frozenset[int], int] = {}
        self._sets: list[frozenset[int]] = []
        self._moves: list[dict[tuple[str, int], int]] = []
        self._quick: list[dict[str, int]] = []
        self._ends: dict[int, int] = {}
        self._found: dict[str, int | None] = {}
        self._rest: dict[int, int] = {}
        self._settled: dict[int, int] = {}
        self._starts = [self._pattern(number, text, from_dots) for number, text in enumerate(patterns)]

    def first(self, name: str) -> int | None:
        """Return the number of the first pattern that matches; None if none does.

        Raise PatternError if the patterns need too many steps.
        """
        if name not in self._found:
            ends = (
                [len(name), len(name) - 1] if self._rest and name.endswith("\n") else [len(name)]
            )  # `$` also matches before a final line break
            numbers = [number for end in ends if (number := self._read(name, end)) is not None]
            self._found[name] = min(numbers, default=None)
        return self._found[name]

    def _read(self, name: str, end: int) -> int | None:
        """Read the first `end` letters of a name backwards."""
        here = AT_END | AT_VERY_END * (end == len(name)) | AT_START * (end == 0)
        if here not in self._ends:
            self._ends[here] = self._numbered(self._closed(self._starts, here))
        state, quick = self._ends[here], self._quick
        line_break = name.find("\n") % (len(name) + 1)  # its length if there is none
        for place in range(end - 1, -1, -1):
            letter = name[place]
            following = quick[state].get(letter) if place and letter != "\n" else None
            state = self._moved(state, letter, place, len(name)) if following is None else following
            if not self._sets[state]:
                return None
            if state in self._settled and place <= line_break:
                return self._settled[state]
        edges = map(self._edges.__getitem__, self._sets[state])
        return min((number for kind, _, number in edges if kind == "end"), default=None)

    def _moved(self, state: int, letter: str, place: int, length: int) -> int:
        here = AT_START * (place == 0) | AT_END * (place == length - 1 and letter == "\n")
        if (letter, here) not in self._moves[state]:
            after = self._closed(self._after(self._sets[state], letter), here)
            self._moves[state][letter, here] = self._numbered(after)
        following = self._moves[state][letter, here]
        if not here:
            self._quick[state][letter] = following
        return following

    def _numbered(self, states: frozenset[int]) -> int:
        """Return the number of a set of states; a pattern that only skips letters before a dot has matched."""
        if states not in self._numbers:
            number = self._numbers[states] = len(self._sets)
            self._sets.append(states)
            self._moves.append({})
            self._quick.append({})
            if states and states <= self._rest.keys():
                self._settled[number] = min(self._rest[state] for state in states)
        return self._numbers[states]

    def _after(self, states: Iterable[int], letter: str) -> Iterator[int]:
        for state in states:
            kind, test, target = self._edges[state]
            if kind == "letter" and (test == letter if isinstance(test, str) else test(letter)):
                yield target

    def _closed(self, states: Iterable[int], here: int) -> frozenset[int]:
        """Add the states that can be reached without reading; keep those that read a letter or end."""
        seen: set[int] = set()
        left = [*states]
        while left:
            state = left.pop()
            if state in seen:
                continue
            seen.add(state)
            kind, what, target = self._edges[state]
            if kind == "either":
                left += [target, what]
            elif kind == "anchor" and here & what:
                left.append(target)
        self._steps += len(seen)
        if self._steps > MOST_STEPS:
            raise PatternError("its patterns stand for too much to be looked through")
        return frozenset(state for state in seen if self._edges[state][0] in ("letter", "end"))

    # -- building: what is read last is built first ------------------------------------------------------

    def _pattern(self, number: int, text: str, from_dots: bool) -> int:
        parsed = parse(text)
        last = self._add("end", None, number)
        if from_dots:  # (.*\.)? before it
            rest = self._add("either", last, 0)
            reads = self._add("letter", _is_no_break, rest)
            self._edges[rest] = ("either", last, reads)
            self._rest[reads] = self._rest[last] = number
            last = self._add("either", last, self._add("letter", ".", rest))
        try:
            return self._sequence(parsed, last)
        except RecursionError:
            raise PatternError(f"the pattern {text!r:.100} is nested too deeply") from None
        except KeyError as error:
            raise PatternError(
                f"the pattern {text!r:.100} has {error.args[0]}, which lorabake does not follow"
            ) from None

    def _add(self, kind: str, what: Any, target: int) -> int:
        if len(self._edges) == MOST_STATES:
            raise PatternError("its patterns are too large")
        self._edges.append((kind, what, target))
        return len(self._edges) - 1

    def _sequence(self, nodes: Any, target: int) -> int:
        for operator, argument in nodes:
            target = self._node(operator, argument, target)
        return target

    def _node(self, operator: Any, argument: Any, target: int) -> int:
        if operator in _REPEATS:
            least, most, nodes = argument
            return self._repeat(least, most, nodes, target)
        if operator is sre.BRANCH:
            first, *more = [self._sequence(branch, target) for branch in argument[1]]
            for branch in more:
                first = self._add("either", first, branch)
            return first
        if operator is sre.SUBPATTERN and not (argument[1] or argument[2]):
            return self._sequence(argument[3], target)
        if operator is sre.AT and argument in _ANCHORS:
            return self._add("anchor", _ANCHORS[argument], target)
        if operator in _REFUSED:
            raise KeyError(_REFUSED[operator])
        return self._add("letter", _letter(operator, argument), target)

    def _repeat(self, least: int, most: int, nodes: Any, target: int) -> int:
        is_open = most is sre.MAXREPEAT
        if is_open:
            loop = self._add("either", target, 0)
            self._edges[loop] = ("either", target, self._sequence(nodes, loop))
            target = loop
        else:
            out = target
            for _ in range(most - least):
                target = self._add("either", out, self._sequence(nodes, target))
        for _ in range(least):
            target = self._sequence(nodes, target)
        return target


class Patterns(Mapping[str, Value]):
    """Hold a field that gives values to modules by pattern; the first matching pattern decides."""

    def __init__(self, values: Mapping[str, Value] | None = None) -> None:
        self._values = dict(values or {})
        self._names = [*self._values]
        self._automaton: Automaton | None = None

    def __getitem__(self, pattern: str) -> Value:
        return self._values[pattern]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def first(self, module: str) -> str | None:
        """Return the first pattern that matches a module; raise PatternError if a pattern cannot be matched."""
        if not self._values:
            return None
        if self._automaton is None:
            self._automaton = Automaton(self._names)
        number = self._automaton.first(module)
        return None if number is None else self._names[number]


def parse(text: str) -> Any:
    """Parse a pattern as Python does; raise PatternError if it is not valid."""
    try:
        parsed = parser.parse(text)
    except re.error as error:
        raise PatternError(f"the pattern {text!r} is no regular expression: {error}") from None
    except (RecursionError, OverflowError):
        raise PatternError(f"the pattern {text!r:.100} is nested too deeply") from None
    if parsed.state.flags != re.UNICODE:
        raise PatternError(
            f"the pattern {text!r:.100} has {_REFUSED[sre.SUBPATTERN]}, which lorabake does not follow"
        )
    return parsed


def matches_whole(pattern: str, name: str) -> bool:
    """Tell whether a pattern matches a whole name; raise PatternError if the pattern cannot be matched."""
    return _whole(pattern).first(name) is not None


def is_quick(pattern: str) -> bool:
    """Tell whether Python's `re` is safe with a pattern: at most two repeats, without repeats or choices inside."""
    try:
        return _repeats(parse(pattern), inside=False) <= 2
    except (PatternError, RecursionError):
        return False


@lru_cache(maxsize=64)
def _whole(pattern: str) -> Automaton:
    return Automaton([pattern], from_dots=False)


def _repeats(nodes: Any, *, inside: bool) -> int:
    """Count the repeats in a pattern; a repeat or choice inside a repeat counts as three."""
    count = 0
    for operator, argument in nodes:
        if operator in _REPEATS:
            count += 3 if inside else 1 + _repeats(argument[2], inside=True)
        elif operator is sre.BRANCH:
            count += 3 if inside else sum(_repeats(branch, inside=inside) for branch in argument[1])
        elif operator is sre.SUBPATTERN:
            count += _repeats(argument[3], inside=inside)
        elif operator in _REFUSED and operator is not sre.AT:
            count += 3
    return count


def _letter(operator: Any, argument: Any) -> str | Callable[[str], bool]:
    """Return the letter that a node reads, or a function that tells whether it reads a letter."""
    if operator is sre.LITERAL:
        return chr(argument)
    if operator is sre.NOT_LITERAL:
        return lambda letter: ord(letter) != argument
    if operator is sre.ANY:
        return _is_no_break
    if operator is not sre.IN:
        raise KeyError(str(operator).lower())
    is_wanted = argument[0][0] is not sre.NEGATE
    tests = [_member(*node) for node in argument if node[0] is not sre.NEGATE]
    return lambda letter: any(test(letter) for test in tests) is is_wanted


def _member(operator: Any, argument: Any) -> Callable[[str], bool]:
    if operator is sre.LITERAL:
        return lambda letter: ord(letter) == argument
    if operator is sre.RANGE:
        return lambda letter: argument[0] <= ord(letter) <= argument[1]
    return _CATEGORIES[argument]


def _is_no_break(letter: str) -> bool:
    return letter != "\n"
