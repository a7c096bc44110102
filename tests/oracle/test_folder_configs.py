"""The configurations of a folder made of a single file, read by the classes of diffusers and transformers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorabake.configs import Told
from lorabake.configs.folder import FolderTexts, folder_texts
from lorabake.keymap.expansion import KeyMap
from lorabake.sources.family import identify
from tests.tables import load_table

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

WHOLE = ("full_sd15_singlefile_1131", "full_sdxl_singlefile_2515", "mecha_sd3_comfyui", "mecha_flux_flux")
NETWORK_ALONE = (
    "arenasys_unet_v1_inpainting", "arenasys_unet_v2_depth", "arenasys_unet_v2_sd", "arenasys_unet_xl_refiner",
    "diffusers_hidream", "diffusers_pixart_sigma", "diffusers_sana_1600m", "full_flux1_schnell_bfl_776",
)  # fmt: skip


def opened(table: str) -> tuple[KeyMap, FolderTexts]:
    tensors = load_table(table)
    key_map = KeyMap.expand(identify(tensors), tensors)
    return key_map, folder_texts(Told.by(key_map), key_map.placed)


def write(folder: FolderTexts, root: Path) -> Path:
    for path, text in folder.texts.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Listen to the libraries at the level that users hear, and return what was said."""
    levels = []
    for name in ("diffusers", "transformers"):
        logger = logging.getLogger(name)
        levels.append((logger, logger.level, logger.propagate))
        logger.setLevel(logging.WARNING)
        logger.propagate = True
        logger.addHandler(caplog.handler)
    yield caplog
    for logger, level, propagate in levels:
        logger.setLevel(level)
        logger.propagate = propagate
        logger.removeHandler(caplog.handler)


def said(heard: pytest.LogCaptureFixture) -> list[str]:
    """Return what the two libraries said, and not what they are built on."""
    return [each.getMessage() for each in heard.records if each.name.startswith(("diffusers", "transformers"))]


def made(maker: Any, root: Path) -> Any:
    """Build a network by the class's own reader of configurations, without memory."""
    with torch.device("meta"):
        if hasattr(maker, "load_config"):
            return maker.from_config(maker.load_config(root, local_files_only=True))
        return maker(maker.config_class.from_pretrained(root, local_files_only=True))


def due(network: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def named(key_map: KeyMap, component: str, wanted: set[str]) -> dict[str, tuple[int, ...]]:
    """Name a component's tensors as its class does, by lorabake's tables; what they do not rename stays."""
    layouts = {layout.name for layout in key_map.component(component).layouts}
    layout = "diffusers" if "diffusers" in layouts else "hf"
    _, prefix = key_map.placed[component]
    found = {
        key.removeprefix(prefix): info.shape
        for key, info in key_map.tensors.items()
        if key_map.owner.get(key) == component
    }
    for name, module in key_map.modules_in(component, layout).items():
        for parameter, view in module.views.items():
            found[name if name in wanted else f"{name}.{parameter}"] = view.shape
    if not any(name.startswith("text_model.") for name in wanted):
        found = {name.removeprefix("text_model."): shape for name, shape in found.items()}
    return found


@pytest.mark.parametrize("table", [*WHOLE, *NETWORK_ALONE])
def test_each_class_accepts_its_configuration_and_has_the_shapes_of_the_header(
    table: str, tmp_path: Path, heard: pytest.LogCaptureFixture
) -> None:
    key_map, folder = opened(table)
    write(folder, tmp_path)
    index = json.loads(folder.texts["model_index.json"])
    for component in key_map.placed:
        library, name = index[component]
        network = made(
            getattr({"diffusers": diffusers, "transformers": transformers}[library], name), tmp_path / component
        )
        wanted = due(network)
        there = named(key_map, component, {*wanted})
        for key, shape in wanted.items():
            tied = key.endswith(("embed_tokens.weight", "position_ids"))
            if not tied:
                assert tuple(size for size in there[key] if size != 1) == tuple(s for s in shape if s != 1), key
    assert not said(heard)


@pytest.mark.parametrize("table", [*WHOLE, *NETWORK_ALONE])
def test_schedulers_and_tokenizers_are_read_without_a_word(
    table: str, tmp_path: Path, heard: pytest.LogCaptureFixture
) -> None:
    _, folder = opened(table)
    write(folder, tmp_path)
    index = json.loads(folder.texts["model_index.json"])
    getattr(diffusers, index["scheduler"][1]).from_pretrained(tmp_path / "scheduler", local_files_only=True)
    for name in (each for each in index if each.startswith("tokenizer") and (tmp_path / each).is_dir()):
        read = transformers.CLIPTokenizer.from_pretrained(tmp_path / name, local_files_only=True)
        assert len(read) == 49408
        assert read.model_max_length == 77
        padded = read("a photo", padding="max_length").input_ids
        assert padded[:4] == [49406, 320, 1125, 49407]
        assert {*padded[4:]} == {read.pad_token_id}
        assert read.pad_token_id == (0 if read.pad_token == "!" else 49407)
        assert read("A <|endoftext|> É").input_ids == read("a <|endoftext|> é").input_ids
    assert not said(heard)
