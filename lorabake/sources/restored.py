"""Write the recipe of a baked file's header as YAML, so that somebody else can bake it again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorabake.recipe import Recipe
from lorabake.recipe.written import written
from lorabake.sources.received import Found, Received


def restored(received: Received, folder: Path) -> str:
    """Return the recipe as YAML for a file in `folder`: with the paths of inputs that were found, from there.

    An input that was not found keeps the path that the header has. The digests are in comments: in the recipe itself
    they would change the header of what is baked.
    """
    recipe = received.recipe
    data: dict[str, Any] = recipe.model_dump(mode="json", exclude_defaults=True)
    named: list[dict[str, Any]] = [data["base"], *data.get("loras", ()), *([data["vae"]] if "vae" in data else [])]
    for source, found in zip(named, received.found, strict=True):
        source["path"] = _path(found, folder)
    data["output"]["path"] = received.baked.name
    if recipe.verify is not None and not recipe.verify.prompts:
        data["verify"]["prompts"] = ["a photo"]  # any: the header has none, and a recipe needs one
    order = [*Recipe.model_fields]
    return written({key: data[key] for key in sorted(data, key=order.index)}, _told(received))


def _told(received: Received) -> Iterator[str]:
    yield f"The recipe in the header of {received.baked.name}, which was baked from:"
    for found in received.found:
        stated = found.input.identity or "the header states no digest"
        size = sum(file.size or 0 for file in found.input.files)
        yield f"{found.input.role}: {found.input.path}, {f'{size} bytes, ' if size else ''}{stated}"


def _path(found: Found, folder: Path) -> str:
    """Write where an input lies, from a folder if the two have a folder in common."""
    if found.place is None:
        return found.input.path
    place = found.place.absolute()
    relative = Path(os.path.relpath(place, folder.absolute()))
    is_far = Path(os.path.commonpath([place, folder.absolute()])) == Path(place.anchor)
    is_same = os.path.realpath(folder / relative) == os.path.realpath(place)
    return relative.as_posix() if is_same and not is_far else str(place)
