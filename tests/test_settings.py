"""Messages name settings as options while a command runs, and as Python's at every other time."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lorabake.artifacts.locking import check, lock
from lorabake.artifacts.reading import read_lock
from lorabake.errors import LockError
from lorabake.settings import INPUTS, as_options
from tests import builders as b

OPTION, ARGUMENT = INPUTS.option, INPUTS.argument


def test_a_command_within_a_command_changes_nothing() -> None:
    assert str(INPUTS) == ARGUMENT
    with as_options():
        with as_options():
            assert str(INPUTS) == OPTION
        assert str(INPUTS) == OPTION
    assert str(INPUTS) == ARGUMENT


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_error_ends_a_command(error: type[BaseException]) -> None:
    with pytest.raises(error), as_options():
        raise error
    assert str(INPUTS) == ARGUMENT


def test_commands_of_two_threads_may_end_in_any_order() -> None:
    first, second = as_options(), as_options()
    for call in (first.__enter__, second.__enter__):
        in_a_thread(call)
    in_a_thread(lambda: first.__exit__(None, None, None))
    assert str(INPUTS) == OPTION
    in_a_thread(lambda: second.__exit__(None, None, None))
    assert str(INPUTS) == ARGUMENT


def in_a_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_a_command_that_is_given_up_is_over() -> None:
    given_up = as_options()
    given_up.__enter__()
    assert str(INPUTS) == OPTION
    del given_up
    assert str(INPUTS) == ARGUMENT


@pytest.mark.parametrize("line", ["command = object()", "try:", "_commands_running.add(command)", "yield"])
def test_an_interruption_at_any_line_leaves_nothing(line: str) -> None:
    code: Any = as_options.__wrapped__.__code__  # type: ignore[attr-defined]
    lines, first = inspect.getsourcelines(as_options)
    number = first + [text.strip() for text in lines].index(line)

    def interrupt(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code is code and event == "line" and frame.f_lineno == number:
            raise KeyboardInterrupt
        return interrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt), as_options():
            pass
    finally:
        sys.settrace(before)
    assert str(INPUTS) == ARGUMENT


def test_advice_on_locks_is_python_outside_of_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    b.save(tmp_path / "base.safetensors", b.sd1(extras=False))
    b.sd1_lora(tmp_path / "lora.safetensors")
    recipe = b.recipe(tmp_path)
    with pytest.raises(LockError, match=r"lorabake.lock\('recipe.yaml'\)"):
        read_lock(recipe)
    lock("recipe.yaml")
    b.sd1_lora(tmp_path / "lora.safetensors", seed=99)
    (stale,) = check(recipe)
    assert stale.mend == "lorabake.lock('recipe.yaml', update=['lora.safetensors'])"
