"""Plots as SVG inside the page, drawn by hand.

An SVG follows the page's colours, light or dark, is sharp in print, keeps its text selectable and needs no plotting
library. The page also has each plot's numbers as a table. The page's policy forbids style attributes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from lorabake.report.wording import MODELS, figure
from lorabake.visible import visible

if TYPE_CHECKING:
    from lorabake.verification.findings import Effect

WIDTH = 1072
"""Width of a plot in SVG user units, which are about CSS pixels."""

LETTER = 6.6
"""Width of a label's letter, estimated generously."""

COLOURS = 6
"""Number of series colours in the style sheet; further series repeat them."""


def effects(rows: Sequence[Effect], order: Sequence[str]) -> Markup:
    """Draw ‖ΔW‖/‖W‖ of one component: blocks from the input down to the output, a column of bars for each LoRA.

    All columns share one linear scale from 0. A LoRA's place in `order` gives its colour, the same in every plot.
    """
    loras = list(dict.fromkeys(effect.lora for effect in rows))
    blocks = list(dict.fromkeys(effect.block for effect in rows))
    relative = {(effect.lora, effect.block): effect.relative for effect in rows}
    top = max((value for value in relative.values() if math.isfinite(value)), default=0.0)
    step = _nice(top)
    scale = step * max(1, math.ceil(top / step - 1e-9))
    row, head, gap = 20, 46, 26
    labels = [_short(block, 300) for block in blocks]
    margin = 14 + LETTER * max(map(len, labels))
    column = max(84.0, (WIDTH - margin - gap * len(loras)) / len(loras))
    height = head + row * len(blocks) + 6
    width = margin + len(loras) * (column + gap)
    plot = _svg(width, height, f"Relative change of {len(blocks)} blocks by {len(loras)} LoRAs")
    for line, label in enumerate(labels):
        y = head + row * line
        if line % 2 == 0:
            _add(plot, "rect", x=0, y=y, width=width, height=row, **{"class": "band"})
        _label(plot, margin - 10, y + row / 2 + 4, label, anchor="end")
    for number, lora in enumerate(loras):
        left = margin + number * (column + gap)
        _label(plot, left, 14, _short(_stem(lora), column), kind="name", title=lora)
        for tick in range(round(scale / step) + 1):
            x = left + column * tick * step / scale
            _add(plot, "line", x1=x, x2=x, y1=head - 6, y2=height - 6, **{"class": "grid"})
            _label(plot, x, head - 12, f"{tick * step:g}", anchor="middle", kind="tick")
        for line, block in enumerate(blocks):
            value = relative.get((lora, block))
            if value is not None and math.isfinite(value):
                length = max(1.0, column * value / scale)
                shape = {"x": left, "y": head + row * line + 4, "width": length, "height": row - 8, "rx": 1.5}
                bar = _add(plot, "rect", **shape, **{"class": f"s{order.index(lora) % COLOURS}"})
                _add(bar, "title").text = f"{lora}, {block}: {figure(value)}"
            elif value is not None:
                _label(plot, left + 4, head + row * line + row / 2 + 4, figure(value), kind="name")
    return _markup(plot)


def place(floor: float | None, baked: float | None, ceiling: float | None) -> Markup:
    """Draw where a distance lies between floor and ceiling, on a logarithmic scale; return "" if one is missing.

    A zero is drawn at the left end.
    """
    if floor is None or baked is None or ceiling is None or not all(map(math.isfinite, (floor, baked, ceiling))):
        return Markup()
    positive = [value for value in (floor, baked, ceiling) if value > 0]
    if not positive:
        return Markup()
    low, high = math.log(min(positive) / 3), math.log(max(positive))
    width, height, end = 132, 18, 7

    def at(value: float) -> float:
        share = (math.log(value) - low) / (high - low) if value > 0 else 0
        return end + (width - 2 * end) * share

    words = f"floor {figure(floor)}, baked {figure(baked)}, ceiling {figure(ceiling)}"
    plot = _svg(width, height, words, kind="place")
    _add(plot, "line", x1=at(0), x2=width - end, y1=height / 2, y2=height / 2, **{"class": "track"})
    for value in (floor, ceiling):
        _add(plot, "line", x1=at(value), x2=at(value), y1=3, y2=height - 3, **{"class": "edge"})
    _add(plot, "circle", cx=at(baked), cy=height / 2, r=4.5, **{"class": "baked"})
    _add(plot, "title").text = words
    return _markup(plot)


def logits(series: Mapping[str, Sequence[float]]) -> Markup:
    """Draw the largest logit difference at each position of a text, by model, on a logarithmic scale.

    Zeros lie on the lowest line; NaN is left out.
    """
    drawn = {model: series[model] for model in MODELS if series.get(model)}
    positive = [value for values in drawn.values() for value in values if math.isfinite(value) and value > 0]
    if not positive:
        return Markup()
    low, high = math.floor(math.log10(min(positive))) - 1, math.ceil(math.log10(max(positive)))
    high = max(high, low + 2)
    left, right, top, bottom, height = 56, 74, 12, 30, 210
    longest = max(len(values) for values in drawn.values())

    def x_of(position: int) -> float:
        return left + (WIDTH - left - right) * position / max(1, longest - 1)

    def y_of(value: float) -> float:
        exponent = math.log10(value) if value > 0 else low
        return height - bottom - (height - bottom - top) * (exponent - low) / (high - low)

    plot = _svg(WIDTH, height, "Largest logit difference from the run-time model at each position")
    every = max(1, math.ceil((high - low) / 6))
    for exponent in range(low, high + 1, every):
        y = y_of(10.0**exponent)
        _add(plot, "line", x1=left, x2=WIDTH - right, y1=y, y2=y, **{"class": "grid"})
        _label(plot, left - 8, y + 4, "0" if exponent == low else _power(exponent), anchor="end", kind="tick")
    for position in _positions(longest):
        _label(plot, x_of(position), height - bottom + 18, str(position + 1), anchor="middle", kind="tick")
    ends: list[float] = []
    for model, values in sorted(drawn.items(), key=lambda item: -item[1][-1]):
        points = [(x_of(at), y_of(value)) for at, value in enumerate(values) if math.isfinite(value)]
        if points:
            path = _add(plot, "polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), **{"class": model})
            _add(path, "title").text = MODELS[model]
            y = max([points[-1][1] + 4, *(end + 14 for end in ends)])  # labels never overlap
            ends.append(y)
            _label(plot, points[-1][0] + 8, y, MODELS[model], kind=f"name {model}")
    return _markup(plot)


# -- pieces --------------------------------------------------------------------------------------------


def _svg(width: float, height: float, words: str, kind: str = "plot") -> ElementTree.Element:
    size = {"viewBox": f"0 0 {width:g} {height:g}", "width": f"{width:g}", "height": f"{height:g}"}
    return ElementTree.Element("svg", {**size, "class": kind, "role": "img", "aria-label": words})


def _add(parent: ElementTree.Element, name: str, **attributes: float | str) -> ElementTree.Element:
    text = {key: value if isinstance(value, str) else f"{value:.4g}" for key, value in attributes.items()}
    return ElementTree.SubElement(parent, name, text)


def _label(
    parent: ElementTree.Element,
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    kind: str = "label",
    title: str = "",
) -> None:
    made = _add(parent, "text", x=x, y=y, **{"text-anchor": anchor, "class": kind})
    made.text = text
    if title:
        _add(made, "title").text = title


def _markup(plot: ElementTree.Element) -> Markup:
    for element in plot.iter():
        element.text = element.text and visible(element.text)
        element.attrib.update({name: visible(value) for name, value in element.attrib.items()})
    return Markup(ElementTree.tostring(plot, encoding="unicode"))  # ElementTree has escaped all text


def _stem(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".safetensors")


def _short(text: str, width: float) -> str:
    """Shorten a long name to its end, where names differ."""
    most = int(width / LETTER)
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _nice(top: float) -> float:
    """Return a round step that divides 0 to `top` into two to four."""
    if top <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(top))
    return next(power * part for part in (0.25, 0.5, 1.0, 2.5, 5.0) if top / (power * part) <= 4)


def _power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if -3 <= exponent <= 3 else f"1e{exponent}"


def _positions(count: int) -> Iterable[int]:
    step = max(1, math.ceil(count / 12))
    return range(0, count, step)
