"""Compute weights a few rows at a time, where any rows can be computed without the others."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch

from lorabake.execution.effects import effect_of
from lorabake.execution.emitting import Emitter
from lorabake.execution.parts import Part, Place, Scaled, Update, overlaps, places_of, stacked
from lorabake.execution.products import Products, is_apart
from lorabake.execution.reading import Loader, Seconds
from lorabake.execution.tiles import Span, tile_values, tiles_of
from lorabake.execution.watching import Watch
from lorabake.execution.zeros import Zeros, keep_signs, negative_zeros
from lorabake.keymap.view import Picked
from lorabake.keymap.view import Span as Rows
from lorabake.matching.patches import Patch
from lorabake.planning.steps import Result, Step, Target
from lorabake.tensors.header import TensorInfo

Factors = tuple[Patch, torch.Tensor, torch.Tensor]
"""A plain patch, and the two factors of the rows that it changes, without its strength."""

Shown = list[tuple[Target, Rows]]
"""Which targets show which rows of a tensor."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Name rows `start` to `stop` of a weight, and the places in it where a bake looks."""

    key: str
    info: TensorInfo
    start: int
    stop: int
    columns: int
    places: tuple[Place, ...]


class ByRows:
    """Compute the weights of one step tile by tile: read it, change it, write it to the targets that show it.

    Of weights that a target shows otherwise than row by row, all tiles are gathered before it is written.
    """

    def __init__(
        self, step: Step, loader: Loader, emitter: Emitter, watch: Watch, seconds: Seconds, products: Products
    ) -> None:
        self.step, self.loader, self.emitter, self.watch = step, loader, emitter, watch
        self._device, self._seconds, self._products = loader.lane.device, seconds, products
        self._scaled = dict[int, torch.Tensor]()
        self._late = [target for target in step.targets if not step.is_in_rows(target)]
        keys = dict.fromkeys(key for target in self._late for key in target.source.keys)
        self._gathered = {key: self._empty(key) for key in keys}
        self._shown = {result.key: self._showing(result.key) for result in step.results}

    def pieces(self, first: int) -> Iterator[tuple[Span, ...]]:
        """Compute and write the pieces from the one with the number `first` on; yield where they are.

        What was gathered before is computed again.
        """
        parts = self._parts()
        tiles = [tile for result in self.step.results for tile in self._tiles(result, parts[result.key])]
        for number, tile in enumerate(tiles):
            if number >= first:
                yield self._piece(tile, parts[tile.key])
            elif tile.key in self._gathered:
                self._gather(tile, parts[tile.key])
        yield from islice(self._rest(), max(0, first - len(tiles)), None)

    def _tiles(self, result: Result, parts: list[Part]) -> Iterator[Tile]:
        rows, columns = self.step.matrix(result.key)
        spans = ((part.start, part.stop) for part in parts)
        places = places_of(spans, columns) if self.step.is_watched else []
        for start, stop in tiles_of(rows, columns, tile_values(self._device)):
            own = [place for place in places if start <= place[0] < stop]
            yield Tile(result.key, result.source.first, start, stop, columns, tuple(own))

    def _showing(self, key: str) -> Shown:
        """List which targets show which rows of a weight, counted as its patches do: all experts are one stack."""
        every = slice(0, self.step.matrix(key)[0])
        shown: Shown = []
        for target in self.step.targets:
            if target.is_direct:
                shown += [(target, Rows(key, every, every))] if target.key == key else []
            elif self.step.is_in_rows(target):
                shown += [(target, span) for span in target.source.spans(key)]
        return shown

    def _piece(self, tile: Tile, parts: list[Part]) -> tuple[Span, ...]:
        """Compute and write some rows, and let go of them: each piece needs its own memory, whatever came before."""
        watch, shown = self.watch, self._shown[tile.key]
        weight, zeros = self._read(tile, parts)
        looks = [watch.look(tile.key, parts, weight, tile.start, place) for place in tile.places]
        watch.note_moves(parts, weight, tile.start)
        self._change(weight, parts, zeros, tile.start)
        for look in looks:
            after = weight[look.start - tile.start :][: len(look.base)]
            watch.see(look, after, self._written(shown, after, look.start), is_sum=not self.step.is_sequential)
        if tile.key in self._gathered:
            self._gathered[tile.key][tile.start : tile.stop] = weight
        return tuple(self._emitted(tile, shown, weight))

    def _gather(self, tile: Tile, parts: list[Part]) -> None:
        """Compute rows that were written and seen before, and are needed once more."""
        weight, zeros = self._read(tile, parts)
        self._change(weight, parts, zeros, tile.start)
        self._gathered[tile.key][tile.start : tile.stop] = weight

    def _read(self, tile: Tile, parts: list[Part]) -> tuple[torch.Tensor, Zeros]:
        """Read the rows of a tile; return them, and where they are −0.0 if that has to stay so."""
        buffer, source = self.loader.stored_rows(tile.info, tile.start, tile.stop, tile.columns)
        zeros = negative_zeros(source) if parts else None
        return self.loader.widened(buffer, source).view(tile.stop - tile.start, tile.columns), zeros

    def _change(self, weight: torch.Tensor, parts: list[Part], zeros: Zeros, start: int) -> None:
        self._apply(weight, parts, start)
        if zeros is not None:
            replaced = [(part.start, part.stop) for part in parts if part.patches[0].sets_all]
            keep_signs(weight, zeros, replaced, start)

    def _rest(self) -> Iterator[tuple[Span, ...]]:
        """Write the targets that show gathered weights."""
        for target in self._late:
            values = target.source.read(self._gathered).reshape(target.source.rows, -1)
            for start, stop in tiles_of(len(values), values.shape[1], tile_values(self._device)):
                before = partial(self._before, target, start, stop)
                yield (self.emitter.emit(self.step, target, values[start:stop], start, before),)

    def _before(self, target: Target, start: int, stop: int) -> torch.Tensor:
        """Read what the base had in rows of a target that shows gathered weights."""
        base = {weight.key: self.loader.whole(weight) for weight in target.weights}
        return target.source.read(base).reshape(target.source.rows, -1)[start:stop]

    def _empty(self, key: str) -> torch.Tensor:
        return torch.empty(self.step.matrix(key), dtype=self.loader.dtype, device=self._device.place)

    def _emitted(self, tile: Tile, shown: Shown, weight: torch.Tensor) -> Iterator[Span]:
        """Write rows of a weight to each target that shows some of them."""
        for target, span in shown:
            here = span.cut(tile.start, tile.stop)
            if here is not None:
                rows = weight[here.stored.start - tile.start : here.stored.stop - tile.start]
                before = partial(self.loader.rows, tile.info, here.stored.start, here.stored.stop, tile.columns)
                yield self.emitter.emit(self.step, target, rows, here.own.start, before)

    def _written(self, shown: Shown, after: torch.Tensor, start: int) -> torch.Tensor | None:
        """Return rows of a weight as a target has them that shows them all; None where none does."""
        for target, span in shown:
            here = span.cut(start, start + len(after))
            if here is not None and here.stored == slice(start, start + len(after)):
                return self.emitter.rounded(target, after, here.own.start)
        return None

    def _parts(self) -> dict[str, list[Part]]:
        """Read the patches, and say by the weight's key what happens to its rows."""
        stacks: dict[tuple[str, int, int, Picked | None], list[Factors]] = {}
        parts: dict[str, list[Part]] = {result.key: [] for result in self.step.results}
        for patch in self.step.patches:
            effect, scale = effect_of(patch, self.step.loras[patch.lora], self.loader)
            self.watch.note_patch(patch, effect, scale)
            for span in (span for span in patch.view.spans() if span.key in parts):
                start, stop, rows = span.stored.start, span.stored.stop, span.own
                if effect.factors is None:
                    parts[span.key].append(Update(start, stop, rows.start, patch, effect, patch.view.chosen))
                    continue
                up, down = effect.factors
                left, right = (down.T, up.T) if patch.view.transpose else (up[rows], down)
                if self.step.is_sequential:
                    parts[span.key] += self._added(start, stop, patch.view.picked, [(patch, left, right)])
                else:
                    stacks.setdefault((span.key, start, stop, patch.view.picked), []).append((patch, left, right))
        for (key, start, stop, picked), on_rows in stacks.items():
            parts[key] += self._added(start, stop, picked, on_rows)
        if self.step.is_sequential:
            return parts
        return {key: sorted(own, key=lambda part: part.adds) for key, own in parts.items()}

    def _added(self, start: int, stop: int, picked: Picked | None, plain: Sequence[Factors]) -> Iterator[Part]:
        """Add plain patches to rows: those of a high rank each by itself, the others in one product."""
        chosen, low = None if picked is None else picked.slice, list[Factors]()
        for patch, left, right in plain:
            if is_apart(len(right), len(plain)):
                number = self._products.number(patch, self.loader.dtype)
                factors = left.contiguous(), right.contiguous()
                yield Scaled(start, stop, *factors, patch, self._products, number, chosen)
            else:
                is_turned = patch.view.transpose
                if patch.number not in self._scaled:  # all spans of a patch have it in common
                    self._scaled[patch.number] = (left if is_turned else right) * patch.strength
                down = self._scaled[patch.number]
                low.append((patch, down, right) if is_turned else (patch, left, down))
        if low:
            yield stacked(start, stop, chosen, low)

    def _apply(self, weight: torch.Tensor, parts: list[Part], first: int) -> None:
        began = time.perf_counter()
        reads = len(parts) > 1 and any(part.reads_weight for part in parts)
        base = weight.clone() if reads and not self.step.is_sequential else weight
        for part, inner, outer in overlaps(parts, first, first + len(weight)):
            rows = weight[outer]
            part.apply(rows, rows if base is weight else base[outer], inner)
        self._seconds["compute"] += time.perf_counter() - began
