"""Show how far the work is by a bar: in a notebook here, in a terminal by `cli.progress`; elsewhere show nothing."""

from __future__ import annotations

import sys
import threading
import warnings
from typing import Any, Self

from lorabake.visible import visible


def unseen(*_: object) -> None:
    """Show nothing. This is what a callback of progress is, unless another one is given."""


def in_notebook() -> bool:
    """Tell whether IPython's kernel runs this code: in Jupyter, Colab, or an editor's notebook."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_ipython is not None and getattr(get_ipython(), "kernel", None) is not None


class Progress:
    """Show one bar of tqdm's at a time; a subclass says which, and where. Without `shown`, show nothing."""

    def __init__(self, *, shown: bool) -> None:
        self._is_shown = shown
        self._bar: Any = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, what: str, total: int, unit: str = "B") -> None:
        """Start a new bar in the place of the last one; a total of 0 shows none."""
        self.remove()
        if self._is_shown and total:
            self._bar = self._drawn(total=total, unit=unit, unit_scale=unit == "B", desc=visible(what), leave=False)

    def advance(self, count: int) -> None:
        """Count units, from any thread."""
        with self._lock:
            self._count(count)

    def step(self, done: int, total: int, label: str) -> None:
        """Show that `done` of `total` steps are finished, and what is being made."""
        if self._bar is None:
            self.begin(label, total, "step")
        if self._bar is not None:
            self._bar.set_description(visible(label), refresh=False)
            self.advance(done - self._bar.n)

    def remove(self) -> None:
        """Take the bar away, so that lines can be printed; the next part of the work has a new one."""
        with self._lock:
            bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()

    def close(self) -> None:
        """Show no more."""
        self.remove()

    def _drawn(self, **settings: Any) -> Any:
        """Make a bar of tqdm's."""
        raise NotImplementedError

    def _count(self, count: int) -> None:
        if self._bar is not None:
            self._bar.update(count)


class NotebookBar(Progress):
    """Show a bar in a notebook; elsewhere, or unless `shown`, show nothing."""

    def __init__(self, *, shown: bool) -> None:
        super().__init__(shown=shown and in_notebook())

    def _drawn(self, **settings: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of missing widgets: tqdm then shows its bar as text
            from tqdm.auto import tqdm

            return tqdm(**settings)
