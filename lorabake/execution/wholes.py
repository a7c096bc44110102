"""Compute weights as a whole, if rows depend on other rows or on how the weight is stored."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice

import torch

from lorabake.codecs.plain import plain
from lorabake.execution.effects import effect_of
from lorabake.execution.emitting import Emitter
from lorabake.execution.methods import combine, masks_of
from lorabake.execution.parts import Look, looks_at
from lorabake.execution.reading import Loader, Seconds
from lorabake.execution.tiles import Span, tile_values, tiles_of
from lorabake.execution.watching import Watch
from lorabake.execution.zeros import keep_all_signs
from lorabake.planning.steps import Result, Step, Target

Tensors = dict[str, torch.Tensor]


class Wholes:
    """Compute the weights of one step together, and write the targets that show them."""

    def __init__(self, step: Step, loader: Loader, emitter: Emitter, watch: Watch, seconds: Seconds) -> None:
        self.step, self.loader, self.emitter, self.watch = step, loader, emitter, watch
        self._device, self._seconds = loader.lane.device, seconds

    def pieces(self, first: int) -> Iterator[tuple[Span, ...]]:
        """Compute everything; write the pieces, beginning with number `first`, and yield their places."""
        baked = self._baked()
        for target, start, stop, values in islice(self._tiles(baked), first, None):
            before = partial(self._before, target, start, stop)
            yield (self.emitter.emit(self.step, target, values[start:stop], start, before),)

    def _baked(self) -> Tensors:
        """Return the new values of the base's tensors by key, before rounding."""
        step, watch = self.step, self.watch
        base = {result.key: self.loader.whole(result.source).contiguous() for result in step.results}
        baked = {key: tensor.clone() for key, tensor in base.items()}
        looks = list(looks_at(step, base)) if step.is_watched else []
        began = time.perf_counter()
        self._combine(self._deltas(base, baked, [look for _, look in looks]), baked)
        for result in step.results:
            baked |= self._encoded(result, baked[result.key], base[result.key])
        for result, look in looks:
            after = baked[result.key].reshape(step.matrix(result.key))[look.start :][: len(look.base)]
            watch.see(
                look, after, self._written(result, after, look.start), is_sum=step.summed and not step.is_sequential
            )
        self._seconds["compute"] += time.perf_counter() - began
        return baked

    def _deltas(self, base: Tensors, baked: Tensors, looks: list[Look]) -> dict[int, torch.Tensor]:
        """Change whole weights by each patch; return the deltas that a method combines, by the patches' numbers."""
        step, deltas = self.step, dict[int, torch.Tensor]()
        in_order = step.patches if step.is_sequential else sorted(step.patches, key=lambda patch: patch.kind.adds)
        for patch in in_order:
            weight = patch.view.read(baked if step.is_sequential else base).reshape(patch.view.rows, -1)
            effect, scale = effect_of(patch, step.loras[patch.lora], self.loader)
            self.watch.note_patch(patch, effect, scale)
            made = effect.of(weight, slice(0, patch.view.rows))
            whole = made if effect.is_result else None
            delta = made - weight if effect.is_result else made
            self.watch.note_delta(patch, delta)
            for look in looks:
                look.add(patch, delta)
            is_all = delta.numel() == baked[patch.view.keys[0]].numel()
            is_alone = len(step.patches) == 1 and step.summed and patch.share == 1 and is_all
            if whole is not None and is_alone and patch.view.transpose:
                baked[patch.view.keys[0]] = whole.T.contiguous()
            elif step.summed or not patch.kind.adds:
                patch.view.add(baked, delta * patch.share)
            else:
                deltas[patch.number] = delta.contiguous()
        return deltas

    def _combine(self, deltas: Mapping[int, torch.Tensor], baked: Tensors) -> None:
        """Add the method's combination of deltas at strength 1, piece by piece."""
        step = self.step
        for key, start, stop, pieces in () if step.summed else step.pieces():
            view = pieces[0].patch.view
            parts = [_turned(deltas[piece.patch.number], turn=view.transpose)[piece.rows] for piece in pieces]
            masks = masks_of(step.method, key, start, [piece.patch.lora for piece in pieces], parts[0].numel())
            total = combine(step.method, parts, [piece.patch.strength for piece in pieces], masks)
            rows = baked[key].view(-1, view.width)[start:stop]
            rows += total.reshape(rows.shape)

    def _encoded(self, result: Result, weight: torch.Tensor, before: torch.Tensor) -> Tensors:
        """Return what each tensor that holds a weight becomes, by its key; `before` is what the weight was worth."""
        if result.codec.is_plain:
            keep_all_signs(self.step, result.key, weight, before)
        if not result.codec.is_plain and torch.equal(weight, before):  # it stays as it is stored
            parts = {role: self.loader.whole(plain(result.source.parts[role])) for role in result.keys}
        else:
            parts = result.codec.encode(result.source, weight)
        return {key: parts[role] for role, key in result.keys.items()}

    def _tiles(self, baked: Tensors) -> Iterator[tuple[Target, int, int, torch.Tensor]]:
        """Cut the targets, direct ones as the base is cut: (target, first row, last row, all its rows)."""
        for target in self.step.targets:
            values = self._shown(target, baked)
            for start, stop in tiles_of(len(values), values.shape[1], tile_values(self._device)):
                yield target, start, stop, values

    def _shown(self, target: Target, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return what a target shows of whole tensors, (rows, columns)."""
        if target.is_direct:
            return tensors[target.key].reshape(self.step.matrix(target.key))
        return target.source.read(tensors).reshape(target.source.rows, -1)

    def _before(self, target: Target, start: int, stop: int) -> torch.Tensor:
        """Read what the base had in rows of a target."""
        return self._shown(target, {weight.key: self.loader.whole(weight) for weight in target.weights})[start:stop]

    def _written(self, result: Result, after: torch.Tensor, start: int) -> torch.Tensor | None:
        """Return rows of a plain weight as its own target has them; None where there is no such target."""
        if not result.codec.is_plain:
            return None
        for target in self.step.targets:
            if target.is_direct and target.key == result.key:
                return self.emitter.rounded(target, after, start)
        return None


def _turned(delta: torch.Tensor, *, turn: bool) -> torch.Tensor:
    return delta.T.contiguous() if turn else delta
