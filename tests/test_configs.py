"""The shipped configurations of families: the phrases that read sizes, and what else they say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lorabake.architectures import architectures
from lorabake.configs import loop_of, notes_of, shipped
from lorabake.configs.sizes import SizeUnknownError, sizes

FAMILIES = sorted(each.name for each in shipped().iterdir() if each.joinpath("model_index.json").is_file())


def modules(**shapes: tuple[int, ...]) -> dict[str, object]:
    views = {name.replace("__", "."): SimpleNamespace(shape=shape) for name, shape in shapes.items()}
    return {name: SimpleNamespace(views={"weight": view}) for name, view in views.items()}


MODULES = modules(
    stem=(32, 4, 3, 3), blocks__0__to_q=(64, 48), blocks__2__to_q=(128, 48), head=(16, 64), grid=(1, 144)
)


@pytest.mark.parametrize(
    ("phrase", "size"),
    [
        ("count blocks.{}.to_q", 2),
        ("numbers blocks.{}.to_q", [0, 2]),
        ("rows stem", 32),
        ("columns stem", 4),
        ("rows blocks.{}.to_q", [64, 128]),
        ("root grid", 12),
        ("has stem", True),
        ("has tail", False),
        ("7", 7),
        ("width", 8),
        ("rows head / 4", 4),
        ("rows head / width * 3", 6),
        ("rows head / 4 / 2", 2),
        ("count blocks.{}.to_q at most 1", 1),
        ("rows head / 64 at least 1", 1),
        ("columns tail or columns head", 64),
        ("columns head or columns tail", 64),
        (["has tail", "a", "b"], "b"),
        (["has stem", "a", "b"], "a"),
        ("columns stem is 4", True),
        ("columns stem is 9", False),
        (["columns stem is 9", "a", "columns stem is 4", "b", "c"], "b"),
        (["columns stem is 9", "a", "columns stem is 8", "b", "c"], "c"),
    ],
)
def test_a_phrase_says_a_size(phrase: object, size: object) -> None:
    assert sizes({"size": phrase}, MODULES, {"width": 8}) == {"size": size}  # type: ignore[arg-type]


def test_a_phrase_may_use_what_was_found_before_it() -> None:
    said = {"heads": "rows head / 4", "width": "heads * 8"}
    assert sizes(said, MODULES, {"width": 1}) == {"heads": 4, "width": 32}  # type: ignore[arg-type]


@pytest.mark.parametrize("phrase", ["rows tail", "columns tail or rows nowhere"])
def test_what_a_header_lacks_is_told(phrase: str) -> None:
    with pytest.raises(SizeUnknownError, match="the base has no tail, which tells how large the network is"):
        sizes({"size": phrase}, MODULES, {})  # type: ignore[arg-type]


def test_of_another_component_the_module_alone_is_told() -> None:
    with pytest.raises(SizeUnknownError, match="the base has no tail,"):
        sizes({"size": "rows transformer:tail"}, MODULES, {})  # type: ignore[arg-type]


def test_an_unknown_word_is_no_phrase() -> None:
    with pytest.raises(ValueError, match="says no size"):
        sizes({"size": "depth stem"}, MODULES, {})  # type: ignore[arg-type]


def test_every_folder_is_a_family() -> None:
    assert {*FAMILIES} <= {architecture.name for architecture in architectures()}


@pytest.mark.parametrize("family", FAMILIES)
def test_notes_say_what_is_read_and_no_more(family: str) -> None:
    assert notes_of(family).keys() <= {"sizes", "predicting", "optional", "arguments", "padding", "loop"}
    has_unet = shipped().joinpath(family, "unet").is_dir()
    assert (loop_of(family) is not None) == has_unet
