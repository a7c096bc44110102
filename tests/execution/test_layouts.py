"""A target has its own name, and a view as its source: an output may be laid out otherwise than the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorabake import load_recipe, plan
from lorabake.errors import InternalError
from lorabake.execution.executor import Executor
from lorabake.keymap.view import Picked, Region, View
from lorabake.planning import Plan
from lorabake.planning.copies import copies_of
from lorabake.planning.steps import Step, Target, can_be_copied, steps_of
from lorabake.reference.arrays import Files
from lorabake.reference.recompute import Recomputation
from tests import builders as b
from tests.execution import by_hand

ROWS, COLUMNS = 24, 20
QKV, Q, K = "block.attn.qkv.weight", "block.self.q.weight", "block.self.k.weight"
UP, DOWN, CONV, IDLE = "block.up.weight", "block.down.weight", "block.conv.weight", "block.idle.weight"
SHAPES = {
    QKV: (3 * ROWS, COLUMNS),
    Q: (ROWS, COLUMNS),
    K: (2 * ROWS, COLUMNS),
    UP: (ROWS, COLUMNS),
    DOWN: (COLUMNS, ROWS),
    CONV: (ROWS, 4, 3, 3),
    IDLE: (ROWS, COLUMNS),
}
KINDS = {"lora": {}, "dora by rows": {"dora": "row"}, "dora by columns": {"dora": "column"}}


def rows(*regions: tuple[str, int, int], columns: int = COLUMNS) -> View:
    return View(tuple(Region(*each) for each in regions), (sum(stop - start for _, start, stop in regions), columns))


LAYOUT = {
    "renamed.weight": View((Region(CONV, 0, ROWS),), SHAPES[CONV]),
    "split.q.weight": rows((QKV, 0, ROWS)),
    "split.swapped.weight": rows((QKV, 2 * ROWS, 3 * ROWS), (QKV, ROWS, 2 * ROWS)),
    "fused.weight": rows((K, ROWS, 2 * ROWS), (Q, 0, ROWS), (K, 0, ROWS)),
    "up.weight": View((Region(UP, 0, ROWS),), (COLUMNS, ROWS), transpose=True),
    DOWN: View((Region(DOWN, 0, COLUMNS),), SHAPES[DOWN]),
    "even.weight": View((Region(DOWN, 0, COLUMNS),), (COLUMNS, ROWS // 2), picked=Picked(range(0, ROWS, 2), ROWS)),
    "idle.half.weight": rows((IDLE, ROWS // 2, ROWS), (IDLE, 0, ROWS // 4)),
}
"""What the output calls its tensors, and what of the base they are."""


def planned(folder: Path, kind: str, **fields: object) -> Plan:
    values = b.Values(5)
    b.save(folder / "base.safetensors", {key: values(*shape, dtype=torch.float16) for key, shape in SHAPES.items()})
    modules = {
        "lora_unet_" + key.removesuffix(".weight").replace(".", "_"): b.lora(
            shape, rank=3, seed=number, **KINDS[kind]
        )  # type: ignore[arg-type]
        for number, (key, shape) in enumerate(SHAPES.items())
        if key != IDLE
    }
    b.kohya(folder / "lora.safetensors", modules)
    b.kohya(folder / "other.safetensors", {name: b.lora(SHAPES[UP], seed=99) for name in modules if "up" in name})
    return plan(load_recipe(b.recipe(folder, **{"loras": ["lora.safetensors", "other.safetensors"], **fields})))


def laid_out(made: Plan) -> tuple[list[Target], tuple[Step, ...]]:
    """Transform a plan's targets into the other layout, and make the steps anew."""
    own = {target.key: target for file in made.files for target in file.targets}
    targets, offset = [], 0
    for key, view in LAYOUT.items():
        first = own[view.keys[0]]
        weights = tuple(own[each].weight for each in view.keys)
        target = replace(first, key=key, name=key, source=view, weights=weights, shape=view.shape, offset=offset)
        targets.append(target)
        offset += target.nbytes
    patches = [patch for step in made.steps for patch in step.patches]
    return targets, steps_of(made.sources, targets, [*{each.number: each for each in patches}.values()], {})


def check(made: Plan, baked: dict[str, torch.Tensor], steps: Sequence[Step]) -> set[str]:
    """Compare what steps write with the ordinary bake under the view, bit for bit; return what was compared."""
    memory = by_hand.run(steps)
    seen = set()
    for target in (target for step in steps for target in step.targets):
        due = LAYOUT[target.key].read({key: tensor.contiguous() for key, tensor in baked.items()})
        assert torch.equal(memory.tensor(target), due), target.key
        ranges = sorted((start, stop) for _, start, stop in memory.finished if target.offset <= start)
        assert sum(stop - start for start, stop in ranges if stop <= target.offset + target.nbytes) == target.nbytes
        seen.add(target.key)
    return seen


@pytest.mark.parametrize("tile", [1 << 18, 7 * COLUMNS])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_ordinary_bake_under_the_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tile: int
) -> None:
    monkeypatch.setattr("lorabake.execution.tiles.TILE_VALUES", tile)
    made = planned(tmp_path, kind)
    baked = load_file(b.run(tmp_path / "recipe.yaml").path)
    base = load_file(tmp_path / "base.safetensors")
    targets, steps = laid_out(made)
    assert check(made, baked, steps) == LAYOUT.keys() - {"idle.half.weight"}
    for target in targets[:-1]:
        before = LAYOUT[target.key].read({key: tensor.contiguous() for key, tensor in base.items()})
        assert not torch.equal(by_hand.run(steps).tensor(target), before), "nothing was baked"


@pytest.mark.parametrize("method", ["ties", "svd"])
def test_a_method_combines_before_the_view(tmp_path: Path, method: str) -> None:
    fields = {"name": method, **({"density": 0.5} if method == "ties" else {"rank": 1})}
    made = planned(tmp_path, "lora", method=fields)
    baked = load_file(b.run(tmp_path / "recipe.yaml").path)
    _, steps = laid_out(made)
    check(made, baked, steps)


def test_rows_that_are_moved_are_written_as_they_are_computed(tmp_path: Path) -> None:
    """Renamed, split, swapped and fused rows need no whole tensor in memory; turned ones, and parts of rows, do."""
    made = planned(tmp_path, "lora")
    targets, steps = laid_out(made)
    assert all(step.by_rows for step in steps)
    late = {target.key for step in steps for target in step.targets if not step.is_in_rows(target)}
    assert late == {"up.weight", "even.weight"}
    together = [{target.key for target in step.targets} for step in steps if len(step.targets) > 1]
    assert together == [{"split.q.weight", "split.swapped.weight"}, {DOWN, "even.weight"}]
    assert not any(target.is_direct for target in targets if target.key != DOWN)


def test_a_piece_after_the_first_ones_is_what_it_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator goes on from where it ran out of memory: what was gathered until then is gathered again."""
    monkeypatch.setattr("lorabake.execution.tiles.TILE_VALUES", 5 * COLUMNS)
    made = planned(tmp_path, "lora")
    baked = load_file(b.run(tmp_path / "recipe.yaml").path)
    _, steps = laid_out(made)
    pieces = Executor._pieces
    monkeypatch.setattr(
        Executor,
        "_pieces",
        lambda self, step, first: chain(islice(pieces(self, step, first), 2), pieces(self, step, first + 2)),
    )
    check(made, baked, steps)


def test_what_nothing_changes_is_copied_range_by_range(tmp_path: Path) -> None:
    """A target without a patch is no step where its bytes are ranges of the base's."""
    made = planned(tmp_path, "lora")
    targets, _ = laid_out(made)
    (idle,) = (target for target in targets if target.key == "idle.half.weight")
    assert can_be_copied(idle)
    raw = (tmp_path / "base.safetensors").read_bytes()
    data = b"".join(raw[copy.start : copy.stop] for copy in copies_of([idle]))
    base = load_file(tmp_path / "base.safetensors")
    assert data == LAYOUT[idle.key].read({IDLE: base[IDLE]}).contiguous().numpy().tobytes()
    turned = replace(idle, source=View((Region(IDLE, 0, ROWS),), (COLUMNS, ROWS), transpose=True))
    assert not can_be_copied(turned)
    (step,) = steps_of(made.sources, [replace(turned, shape=(COLUMNS, ROWS))], [], {})
    assert torch.equal(by_hand.run([step]).tensor(step.targets[0]), base[IDLE].T)


def test_what_patches_change_is_never_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(tmp_path, "lora")
    monkeypatch.setattr("lorabake.planning.steps._joined", lambda *_, **__: iter(()))
    with pytest.raises(InternalError, match="is changed, and no step computes it"):
        laid_out(made)


def test_the_second_account_says_that_it_computes_in_the_layout_of_the_base_alone(tmp_path: Path) -> None:
    made = planned(tmp_path, "lora")
    _, steps = laid_out(made)
    with pytest.raises(InternalError, match="another layout"):
        next(Recomputation(Files()).tiles(steps[0]))
