"""Show how far the work is, where a notebook runs it. Anywhere else the library shows nothing."""

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


class NotebookBar:
    """Show tqdm's bar; without a notebook, or unless `shown`, show nothing."""

    def __init__(self, *, shown: bool) -> None:
        self._is_shown = shown and in_notebook()
        self._bar: Any = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, what: str, total: int, unit: str = "B") -> None:
        """Start a new bar in the place of the last one; a total of 0 shows none."""
        self.close()
        if self._is_shown and total:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of missing widgets: tqdm then shows its bar as text
                from tqdm.auto import tqdm

                self._bar = tqdm(total=total, unit=unit, unit_scale=unit == "B", desc=visible(what), leave=False)

    def advance(self, count: int) -> None:
        """Count units, from any thread."""
        with self._lock:
            if self._bar is not None:
                self._bar.update(count)

    def step(self, done: int, total: int, label: str) -> None:
        """Show that `done` of `total` steps are finished, and what is being made."""
        if self._bar is None:
            self.begin(label, total, "step")
        if self._bar is not None:
            self._bar.set_description(visible(label), refresh=False)
            self.advance(done - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        with self._lock:
            bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()
