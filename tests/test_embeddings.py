"""Learned embeddings in LoRA files: written beside the output as textual inversion, all or nothing, and proven."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorabake import RunOptions, VerifyOptions, bake, load_recipe, plan, verify
from lorabake.errors import LorabakeError, MatchError, TargetError
from lorabake.writing import commit
from tests import builders as b
from tests.documents import check, inspect
from tests.test_survival import cli

WEIGHTS = VerifyOptions(stages=("structure", "weights"))
LAYER = b.lora((b.W, b.W), seed=1, alpha=1.0)
Q = b.unet_lora(b.Q)


def vectors(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return b.Values(seed)(*shape, dtype=dtype)


def world(
    folder: Path, learned: b.Tensors, metadata: dict[str, str] | None = None, *, name: str = "lora.safetensors"
) -> Path:
    """Write SD 1.x and a LoRA of one layer with learned embeddings."""
    if not (folder / "base.safetensors").exists():
        b.save(folder / "base.safetensors", b.sd1())
    layer = {Q + b.KOHYA[slot]: tensor for slot, tensor in LAYER.items()}
    b.save(folder / name, {**layer, **{key: tensor.clone() for key, tensor in learned.items()}}, metadata)
    return b.recipe(folder)


def beside(folder: Path) -> set[str]:
    """Name what a bake left in the folder."""
    return {path.name for path in folder.iterdir()} - {"base.safetensors", "lora.safetensors", "recipe.yaml"}


def failures(recipe: Path) -> set[str]:
    found = verify(load_recipe(recipe), options=WEIGHTS)
    assert found.is_true == (not any(each.status == "fail" for each in found.findings))
    return {each.check for each in found.findings if each.status == "fail"}


EMB, L, G, T5 = vectors(1, 2, 8), vectors(2, 3, 8, dtype=torch.float16), vectors(3, 3, 10), vectors(4, 3, 12)
FORMS: dict[str, tuple[b.Tensors, dict[str, str] | None, dict[str, b.Tensors]]] = {
    "automatic1111": (
        {"bundle_emb.ohwx.string_to_param.*": EMB},
        None,
        {"out.ohwx.safetensors": {"emb_params": EMB}},
    ),
    "onetrainer sd1": ({"bundle_emb.ohwx.clip_l": L}, None, {"out.ohwx.safetensors": {"clip_l": L}}),
    "onetrainer sdxl, two words": (
        {"bundle_emb.a.b.clip_l": L, "bundle_emb.a.b.clip_g": G, "bundle_emb.c.clip_g": G},
        None,
        {"out.ab.safetensors": {"clip_l": L, "clip_g": G}, "out.c.safetensors": {"clip_g": G}},
    ),
    "onetrainer flux": (
        {"bundle_emb.ohwx.clip_l": L, "bundle_emb.ohwx.t5": T5},
        None,
        {"out.ohwx.safetensors": {"clip_l": L, "t5xxl": T5}},
    ),
    "cloneofsimo": (
        {"<s1>": EMB[0], "<s2>": EMB[1]},
        {"<s1>": "<embed>", "<s2>": "<embed>"},
        {"out.s1.safetensors": {"emb_params": EMB[:1]}, "out.s2.safetensors": {"emb_params": EMB[1:]}},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_each_word_is_written_and_proven(form: str, tmp_path: Path) -> None:
    learned, metadata, files = FORMS[form]
    recipe = world(tmp_path, learned, metadata)
    made = b.run(recipe)
    assert beside(tmp_path) == {"out.safetensors", *files}
    for name, wanted in files.items():
        found = load_file(tmp_path / name)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) and found[key].dtype == wanted[key].dtype for key in wanted)
    assert failures(recipe) == set()
    (ledger,) = made.plan.ledgers
    assert ledger.is_balanced
    assert (ledger.applied, ledger.tensors) == (len(LAYER), len(LAYER) + len(learned))
    assert [each["path"] for each in made.plan.report()["embeddings"]] == [*files]  # type: ignore[attr-defined]
    before = {name: b.sha256(tmp_path / name) for name in beside(tmp_path)}
    b.run(recipe, overwrite=False, workers=1)  # onto its own result
    assert {name: b.sha256(tmp_path / name) for name in beside(tmp_path)} == before


def test_the_checkpoint_is_that_of_the_lora_without_them(tmp_path: Path) -> None:
    recipe = world(tmp_path, FORMS["cloneofsimo"][0], FORMS["cloneofsimo"][1])
    whole = b.tensor_bytes(b.run(recipe).path)
    world(tmp_path, {})
    assert b.tensor_bytes(b.run(recipe).path) == whole


def test_a_pickle_of_embeddings_is_read(tmp_path: Path) -> None:
    """cloneofsimo's trainers left `.ti.pt` beside the matrices; alone it changes no weight."""
    b.save(tmp_path / "base.safetensors", b.sd1())
    torch.save({"<s1>": EMB[0]}, tmp_path / "lora.ti.pt")
    recipe = b.recipe(tmp_path, loras=["lora.ti.pt"])
    made = b.run(recipe)
    assert torch.equal(load_file(tmp_path / "out.s1.safetensors")["emb_params"], EMB[:1])
    assert b.tensor_bytes(made.path) == b.tensor_bytes(tmp_path / "base.safetensors")
    assert failures(recipe) == set()
    assert inspect(tmp_path / "lora.ti.pt")["learned_embeddings"] == ["<s1>"]


def test_plan_and_bake_tell_it(tmp_path: Path) -> None:
    recipe = world(tmp_path, {"bundle_emb.ohwx.clip_l": L, "bundle_emb.ohwx.clip_l_out": L})
    for command in ("plan", "bake"):
        code, told = cli(command, recipe)
        assert code == 0
        assert "2 written to out.ohwx.safetensors: the learned embedding of 'ohwx'" in told
        assert "note: learned embeddings stay as they are: no strength and no dtype applies to them" in told
        assert "note: only OneTrainer reads embeddings called …_out" in told
    report = check(cli("plan", recipe, "--json")[1])
    assert report["embeddings"] == [
        {
            "path": "out.ohwx.safetensors",
            "lora": "lora.safetensors",
            "token": "ohwx",
            "tensors": [{"key": "clip_l", "shape": [3, 8]}, {"key": "clip_l_out", "shape": [3, 8]}],
            "bytes": (tmp_path / "out.ohwx.safetensors").stat().st_size,
        }
    ]
    with safe_open(tmp_path / "out.ohwx.safetensors", "pt") as file:
        assert file.metadata()["lorabake.token"] == "ohwx"


def test_components_leave_them_out(tmp_path: Path) -> None:
    world(tmp_path, {"bundle_emb.ohwx.clip_l": L})
    recipe = b.recipe(tmp_path, loras=[{"path": "lora.safetensors", "components": ["unet"]}])
    (ledger,) = b.run(recipe).plan.ledgers
    assert ledger.excluded == {"not in components: [unet]": 1}
    assert beside(tmp_path) == {"out.safetensors"}


@pytest.mark.parametrize(
    ("token", "name"),
    [
        ("../../etc/passwd", "etcpasswd"),
        ("<a/b>", "ab"),
        ("..", "token"),
        ("a\\b:c*\0d\n", "abcd"),
        ("naïve 猫", "naïve猫"),
        ("x" * 300, "x" * 64),
    ],
)
def test_a_token_is_no_path(token: str, name: str, tmp_path: Path) -> None:
    recipe = world(tmp_path / "inner", {f"bundle_emb.{token}.clip_l": L})
    b.run(recipe)
    assert beside(tmp_path / "inner") == {"out.safetensors", f"out.{name}.safetensors"}
    assert beside(tmp_path) == {"inner"}
    assert failures(recipe) == set()


def test_words_of_one_name_are_numbered(tmp_path: Path) -> None:
    world(tmp_path, {"bundle_emb.s1.clip_l": L, "bundle_emb.<S1>.clip_l": L + 1})
    world(tmp_path, {"bundle_emb.s1.clip_l": L + 2}, name="second.safetensors")
    recipe = b.recipe(tmp_path, loras=["lora.safetensors", {"path": "second.safetensors", "strength": -1}])
    b.run(recipe)
    for name, wanted in (("out.S1", L + 1), ("out.s1-2", L), ("out.s1-3", L + 2)):
        assert torch.equal(load_file(tmp_path / f"{name}.safetensors")["clip_l"], wanted)
    assert failures(recipe) == set()


def test_they_lie_beside_a_folder(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "base")
    world(tmp_path, {"bundle_emb.ohwx.clip_l": L})
    recipe = b.recipe(tmp_path, base="base", output={"path": "my.model"})
    b.run(recipe)
    assert beside(tmp_path) == {"base", "my.model", "my.model.ohwx.safetensors"}
    assert failures(recipe) == set()


def test_what_is_no_embedding_is_refused(tmp_path: Path) -> None:
    for learned in ({"bundle_emb.a.clip_l": torch.zeros(2, 3, 4)}, {"bundle_emb.a.clip_l": torch.arange(4)}):
        with pytest.raises(MatchError, match="no known form"):
            plan(load_recipe(world(tmp_path, learned)))
    twice = {"bundle_emb.a.string_to_param.*": EMB, "bundle_emb.a.string_to_param.x": EMB}
    with pytest.raises(MatchError, match="a second embedding of 'a'"):
        plan(load_recipe(world(tmp_path, twice)))


# -- All or nothing ------------------------------------------------------------------------------------------


def test_a_strange_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    recipe = world(tmp_path, {"bundle_emb.ohwx.clip_l": L})
    mine = tmp_path / "out.ohwx.safetensors"
    mine.write_bytes(b"mine")
    with pytest.raises(TargetError, match=r"out.ohwx.safetensors: exists and holds something else"):
        bake(load_recipe(recipe), RunOptions(fsync=False))
    assert mine.read_bytes() == b"mine"
    assert beside(tmp_path) == {mine.name}
    b.run(recipe, overwrite=True)
    assert torch.equal(load_file(mine)["clip_l"], L)
    assert beside(tmp_path) == {mine.name, "out.safetensors"}
    mine.unlink()
    mine.mkdir()
    with pytest.raises(TargetError, match="is a folder"):
        b.run(recipe, overwrite=True)


def test_an_input_is_not_replaced(tmp_path: Path) -> None:
    world(tmp_path, {"bundle_emb.ohwx.clip_l": L}, name="out.ohwx.safetensors")
    recipe = b.recipe(tmp_path, loras=["out.ohwx.safetensors"])
    with pytest.raises(TargetError, match="is an input of this recipe"):
        b.run(recipe, overwrite=True)


@pytest.mark.parametrize("has_old", [True, False])
@pytest.mark.parametrize("fails_at", ["out.one.safetensors", "out.two.safetensors", "out.safetensors"])
def test_a_bake_that_fails_at_the_end_changes_nothing(
    fails_at: str, has_old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = world(tmp_path, {"bundle_emb.one.clip_l": L, "bundle_emb.two.clip_l": L + 1})
    for name in ("out.one.safetensors", "out.two.safetensors", "out.safetensors") if has_old else ():
        (tmp_path / name).write_bytes(b"old")
    before = b.tree(tmp_path)
    do = commit.Move.do

    def fail(move: commit.Move) -> None:
        if move.target.name == fails_at:
            raise OSError(28, "No space left on device")
        do(move)

    monkeypatch.setattr(commit.Move, "do", fail)
    with pytest.raises(LorabakeError):
        b.run(recipe, overwrite=True)
    assert b.tree(tmp_path) == before


# -- Verification --------------------------------------------------------------------------------------------


def _spoil(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (Path.unlink, "structure.embedding"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "structure.embedding"),
    "one bit": (_spoil, "weights.embedding"),
    "another dtype": (lambda path: save_file({"clip_l": L.float()}, path), "structure.embedding"),
    "another name": (lambda path: save_file({"emb_params": L}, path), "structure.embedding"),
    "one more": (lambda path: save_file({"clip_l": L, "clip_g": G}, path), "structure.embedding"),
    "another word's": (lambda path: save_file({"clip_l": L.flip(0).contiguous()}, path), "weights.embedding"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_file_is_named(fault: str, tmp_path: Path) -> None:
    recipe = world(tmp_path, {"bundle_emb.ohwx.clip_l": L})
    b.run(recipe)
    spoil, check = FAULTS[fault]
    spoil(tmp_path / "out.ohwx.safetensors")
    assert check in failures(recipe)


@pytest.mark.oracle
def test_diffusers_reads_them(tmp_path: Path) -> None:
    loaders = pytest.importorskip("diffusers.loaders.textual_inversion")
    b.run(world(tmp_path, {"bundle_emb.ohwx.string_to_param.*": EMB}))
    states = loaders.load_textual_inversion_state_dicts([str(tmp_path / "out.ohwx.safetensors")])
    mixin = loaders.TextualInversionLoaderMixin()

    class Tokenizer:
        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    tokens, found = mixin._retrieve_tokens_and_embeddings(["ohwx"], states, Tokenizer())
    assert tokens == ["ohwx"]
    assert torch.equal(found[0], EMB)
