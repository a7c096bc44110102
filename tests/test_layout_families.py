"""Every family with both layouts: a folder becomes a single file and comes back, and so does the file, byte for byte.

The families are those that are discovered, and their models come from headers of real ones, or else from the family's
own table, with small sides. So a new family needs nothing here.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from lorabake import VerifyOptions, verify
from lorabake.architectures import architectures
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.rewriting import rewritten
from lorabake.keymap.table import Architecture, Component, Has, Lacks, Row
from lorabake.planning.layout import has_both, names_for, single_names
from lorabake.planning.rebuilt import BUFFERS
from lorabake.sources.family import identify
from tests import builders as b
from tests.conversions import CHECKPOINTS
from tests.tables import infos, load_table, names
from tests.test_layouts_out import assert_equal, to, values

Shapes = dict[str, tuple[int, ...]]

FAMILIES = {each.name: each for each in architectures() if each.components and has_both(each.components[0])}
WAYS = [
    (family.name, name)
    for family in FAMILIES.values()
    for name in single_names(family.components[0]) or (names_for(family.components[0], "single")[0].name,)
]
QUICK = VerifyOptions(stages=["structure", "quick"])
SHARE = 64
"""Sides of real models that can be divided by this are."""


def test_families_with_both_layouts_are_discovered() -> None:
    assert {"sd1", "sdxl", "sd3", "flux", "wan", "qwen_image", "hunyuan_video"} <= FAMILIES.keys()
    assert ("hunyuan_video", "comfy") in WAYS


@cache
def headers() -> dict[str, list[str]]:
    """List the tables of each family's checkpoints."""
    found: dict[str, list[str]] = {}
    for table in names("checkpoint"):
        found.setdefault(identify(load_table(table)).name, []).append(table)
    return found


def small(side: int) -> int:
    return side // SHARE if side % SHARE == 0 else side


def network_of(family: Architecture) -> Shapes:
    """Return names and small shapes of a family's first network as diffusers names it."""
    component = family.components[0]
    there = names_for(component, "diffusers")[0].name
    for table in headers().get(family.name, ()):
        key_map = KeyMap.expand(family, load_table(table))
        here, prefix = key_map.placed[component.name]
        own = {
            key.removeprefix(prefix): info
            for key, info in load_table(table).items()
            if key_map.owner.get(key) == component.name
        }
        made = {each.name: tuple(map(small, each.view.shape)) for each in rewritten(component, here.name, there, own)}
        return _some_layers(made, component)
    return from_table(component)


def _some_layers(shapes: Shapes, component: Component) -> Shapes:
    """Leave out most layers of a network that has many alike: those that a table names by a number of any size."""
    needed = {need.key for layout in component.layouts for need in layout.needs}
    if component.name == "unet":
        return shapes
    last: dict[str, int] = {}
    for name in shapes:
        if (place := _numbered(name)) is not None:
            last[place[0]] = max(last.get(place[0], 0), place[1])
    return {
        name: shape
        for name, shape in shapes.items()
        if (place := _numbered(name)) is None or place[1] in (0, 1, last[place[0]]) or name in needed
    }


def _numbered(name: str) -> tuple[str, int] | None:
    words = name.split(".")
    at = next((at for at, word in enumerate(words) if word.isdigit()), None)
    return None if at is None else (".".join(words[:at]), int(words[at]))


def from_table(component: Component) -> Shapes:
    """Make a network of all rows of a table, one layer of each sort, and of what recognises it."""
    layout = names_for(component, "diffusers")[0]
    column = component.layouts.index(layout)
    made: Shapes = {}
    for row in component.rows:
        made |= {f"{path.replace('{}', '0')}.weight": (12, 4) for path in row.paths(column)}
    for need in layout.needs:
        if isinstance(need, Has) and not isinstance(need, Lacks):
            sides = (12, 12 * (need.ratio or 1), 3, 3, 3)[: need.ndim or 1]
            made[need.key] = sides
    return made


@pytest.mark.parametrize(("family", "name"), WAYS, ids="-".join)
def test_a_folder_and_its_file_come_back_byte_for_byte(tmp_path: Path, family: str, name: str) -> None:
    component = FAMILIES[family].components[0]
    place = names_for(component, "diffusers")[0]
    numbers = b.Values(3)
    made = {key: numbers(*shape, dtype=torch.bfloat16) for key, shape in network_of(FAMILIES[family]).items()}
    folder = tmp_path / "folder" / ("" if len(FAMILIES[family].components) == 1 else place.folder)
    b.save(folder / "diffusion_pytorch_model.safetensors", made, metadata={"format": "pt"})
    wanted = {"single": name} if name in single_names(component) else "single"
    single = to(tmp_path, "folder", "single.safetensors", wanted)
    b.assert_right(verify(tmp_path / "recipe.yaml", options=QUICK))
    back = to(tmp_path, "single.safetensors", "back", "diffusers")
    b.assert_right(verify(tmp_path / "recipe.yaml", options=QUICK))
    assert_equal(values(back), values(tmp_path / "folder"))
    again = to(tmp_path, "back", "again.safetensors", wanted)
    made_again = values(again)
    anew = {key for key in made_again if key in BUFFERS}  # the new folder has a scheduler
    assert_equal({key: value for key, value in made_again.items() if key not in anew}, values(single))
    key_map = KeyMap.expand(FAMILIES[family], infos({key: [*each.shape] for key, each in values(single).items()}))
    assert key_map.placed[component.name][0].name == name


def test_no_row_of_a_table_is_forgotten() -> None:
    """Rows that a model from a table has are renamed at all: a table with two columns says two names."""
    changed = 0
    for family in FAMILIES.values():
        component = family.components[0]
        for row in component.rows:
            changed += _differ(row)
    assert changed > 500


def _differ(row: Row) -> int:
    return (len(set(map(str, row.names))) > 1) + sum(map(_differ, row.rows))


# -- the page -------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "layouts.md"
BEGIN, END = "<!-- families: python -m tests.test_layout_families -->\n", "<!-- /families -->"
COMPARED = {identify(load_table(table)).name for table in CHECKPOINTS} | {
    "sd1",
    "sd2",
    "sdxl",
    "sdxl_refiner",
    "controlnet",
    "controlnet_xl",
}
"""Families whose pairs of names are held against diffusers' own conversions (tests/oracle)."""


def table() -> str:
    """Write the table of families for docs/layouts.md."""
    rows = []
    for family in FAMILIES.values():
        both = [part for part in family.components if has_both(part)]
        alone = [part.name for part in family.components if not has_both(part)]
        names = ", ".join(f"`{name}`" for name in single_names(family.components[0])) or "diffusers' own"
        parts = ", ".join(part.name for part in both)
        compared = "yes" if family.name in COMPARED else "no"
        rows.append(f"| {family.title} | {parts} | {names} | {', '.join(alone) or 'none'} | {compared} |")
    head = "| family | both ways | names in a single file | refused | held against diffusers |\n|---|---|---|---|---|"
    return "\n".join([head, *sorted(rows, key=str.lower)]) + "\n"


def parts_of_page() -> tuple[str, str, str]:
    before, mark, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    inside, end, after = rest.partition(END)
    return before + mark, inside, end + after


def test_the_page_lists_the_families() -> None:
    assert parts_of_page()[1].strip() == table().strip(), "write it anew: python -m tests.test_layout_families"


if __name__ == "__main__":
    start, _, rest_of_page = parts_of_page()
    PAGE.write_text(f"{start}\n{table()}\n{rest_of_page}", encoding="utf-8")
