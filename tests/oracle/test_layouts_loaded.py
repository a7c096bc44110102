"""Converted outputs, loaded by diffusers' own code: files by `from_single_file`, folders by `from_pretrained`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests import builders as b  # noqa: E402
from tests import small_pipelines  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


TIED = "encoder.embed_tokens.weight"
"""T5's second name for its embedding. Published files lack it, and `from_single_file` leaves it without values."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """Keep each family's pipeline, and the folder that it was saved to."""
    return {}


def saved(family: str, made: dict[str, tuple[Any, Path]], factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    if family not in made:
        root = factory.mktemp(family)
        made[family] = small_pipelines.save(root / "saved", family), root
        for name, output in (("saved", "single.safetensors"), ("single.safetensors", "folder")):
            layout = "diffusers" if output == "folder" else "single"
            b.run(b.recipe(root, base=name, loras=[], output={"path": output, "layout": layout}))
    return made[family]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Listen to the libraries at the level that users hear."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name.startswith(("diffusers", "transformers")):
                heard.append(record.getMessage())

    heard: list[str] = []
    listener = Listener()
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(listener)
        logger.setLevel(logging.WARNING)
    yield heard
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(listener)
        logger.setLevel(level)


def assert_same(one: Any, other: Any) -> None:
    networks = {name for name, part in one.components.items() if isinstance(part, torch.nn.Module)}
    for name in networks:
        first, second = getattr(one, name).state_dict(), getattr(other, name).state_dict()
        assert first.keys() == second.keys(), name
        for key, tensor in first.items():
            if second[key].is_meta and key == TIED:
                continue
            assert not second[key].is_meta, f"{name}: {key}"
            assert torch.equal(tensor, second[key].to(tensor.dtype)), f"{name}: {key}"


@pytest.mark.parametrize("family", small_pipelines.FAMILIES)
def test_from_pretrained_loads_a_folder_made_of_a_single_file(
    family: str, made: dict[str, tuple[Any, Path]], tmp_path_factory: pytest.TempPathFactory, said: list[str]
) -> None:
    pipeline, root = saved(family, made, tmp_path_factory)
    said.clear()
    given = {name: getattr(pipeline, name) for name in ("tokenizer_2", "tokenizer_3") if lacks(root / "folder", name)}
    loaded = diffusers.DiffusionPipeline.from_pretrained(
        root / "folder", local_files_only=True, dtype=torch.float16, **given
    )
    assert type(loaded) is type(pipeline)
    assert not said
    assert_same(pipeline, loaded)
    for name in ("tokenizer", "tokenizer_2"):
        if hasattr(pipeline, name):
            one, other = getattr(pipeline, name), getattr(loaded, name)
            assert one("a photo, of Ünïcode", padding="max_length").input_ids == (
                other("a photo, of Ünïcode", padding="max_length").input_ids
            )
    assert loaded.scheduler.config.get("prediction_type") == pipeline.scheduler.config.get("prediction_type")


def lacks(folder: Path, name: str) -> bool:
    """Tell whether a folder's MISSING.txt asks for something."""
    note = folder / "MISSING.txt"
    return note.exists() and f"\n  {name} " in note.read_text()


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sd3"])  # Flux: diffusers splits at the width 3072
def test_from_single_file_loads_a_file_made_of_a_folder(
    family: str, made: dict[str, tuple[Any, Path]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    pipeline, root = saved(family, made, tmp_path_factory)
    loaded = type(pipeline).from_single_file(
        str(root / "single.safetensors"), config=str(root / "saved"), local_files_only=True, dtype=torch.float16
    )
    assert_same(pipeline, loaded)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_folder_made_of_a_single_file_draws_what_the_first_one_draws(
    family: str, made: dict[str, tuple[Any, Path]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    _, root = saved(family, made, tmp_path_factory)
    loaded = diffusers.DiffusionPipeline.from_pretrained(root / "folder", local_files_only=True, dtype=torch.float32)
    first = diffusers.DiffusionPipeline.from_pretrained(root / "saved", local_files_only=True, dtype=torch.float32)
    first.scheduler = loaded.scheduler
    drawn = []
    for each in (first, loaded):
        each.set_progress_bar_config(disable=True)
        seed = torch.Generator().manual_seed(1)
        made_of = each("a photo", num_inference_steps=2, height=64, width=64, generator=seed, output_type="latent")
        drawn.append(made_of.images)
    assert torch.equal(*drawn)
    assert drawn[0].abs().sum() > 0
