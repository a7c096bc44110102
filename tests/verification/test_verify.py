"""What verify finds in right files, in files of other tools, and what it says where it cannot look."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from lorabake import load_recipe
from lorabake.baking import plan
from lorabake.cli.verify import verify as command
from lorabake.errors import FileError, RecipeError, SurroundingsError
from lorabake.tensors.safetensors import read_header
from lorabake.verification import VerifyOptions, embedded_recipe, stages, verify
from lorabake.verification.environment import environment_of
from lorabake.verification.findings import Finding, Samples, Status, Verification
from lorabake.verification.stages import COMPARING
from lorabake.verification.structure.digests import Digests
from lorabake.verification.weights.effects import block_of, in_order
from tests import builders as b
from tests.documents import check, checked

BOTH = VerifyOptions(stages=("structure", "weights"))
STAGES = ["--stage", "structure", "--stage", "weights"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hold base.safetensors, two LoRAs, a recipe of both and its bake."""
    monkeypatch.setattr(b, "W", 32)
    monkeypatch.setattr(b, "TEXT", 32)
    b.save(tmp_path / "base.safetensors", b.sd1(extras=True))
    b.sd1_lora(tmp_path / "one.safetensors", seed=1, rank=6, size=0.1)
    b.sd1_lora(tmp_path / "two.safetensors", seed=50, rank=4, size=0.1)
    loras = [{"path": "one.safetensors", "strength": 0.8}, {"path": "two.safetensors", "strength": 0.5}]
    b.run(b.recipe(tmp_path, loras=loras))
    return tmp_path


def look(folder: Path, **options: object) -> Verification:
    chosen = VerifyOptions(**{"stages": BOTH.stages, **options})  # type: ignore[arg-type]
    return checked(verify(load_recipe(folder / "recipe.yaml"), None, chosen))


def found(verification: Verification, status: Status = Status.FAIL) -> dict[str, Finding]:
    return {each.check: each for each in verification.findings if each.status is status}


def save_plain(folder: Path, tensors: b.Tensors) -> None:
    """Write the output as another tool would: no metadata, the library's own order."""
    b.save(folder / "out.safetensors", tensors)


def merged(folder: Path, *strengths: float) -> b.Tensors:
    """Merge the two LoRAs into the base in float32, at these strengths."""
    tensors = load_file(folder / "base.safetensors")
    made = [b.sd1_lora(folder / "x.safetensors", seed=1, rank=6, size=0.1)]
    made.append(b.sd1_lora(folder / "x.safetensors", seed=50, rank=4, size=0.1))
    for name, key in b.SD1_KEYS.items():
        if name in made[0]:
            weight = tensors[key].double()
            for slots, strength in zip(made, strengths, strict=True):
                weight += strength * b.delta(slots[name], tuple(weight.shape))
            tensors[key] = weight.to(tensors[key].dtype)
    return tensors


def test_a_bake_is_true_and_says_where_each_lora_acts(folder: Path) -> None:
    verification = look(folder)
    assert verification.status is Status.PASS
    assert {each.lora for each in verification.effects} == {"one.safetensors", "two.safetensors"}
    assert {each.what for each in verification.tensors} == {"applied"}
    assert len(verification.tensors) == 8


def test_the_effects_are_the_norms_of_the_changes(folder: Path) -> None:
    slots = b.sd1_lora(folder / "x.safetensors", seed=1, rank=6, size=0.1)
    weight = load_file(folder / "base.safetensors")[b.SD1_KEYS[b.CONV]].double()
    delta = 0.8 * b.delta(slots[b.CONV], tuple(weight.shape))
    (effect,) = [each for each in look(folder).effects if each.lora == "one.safetensors" and "resnets" in each.block]
    assert effect.block == "down_blocks.0.resnets.0"
    assert effect.relative == pytest.approx(float(delta.norm() / weight.norm()), rel=1e-9)


@pytest.mark.parametrize("compute", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["keep", "bfloat16", "float32"])
def test_every_dtype_and_precision_verifies(folder: Path, dtype: str, compute: str) -> None:
    fields = {"loras": ["one.safetensors"], "compute_dtype": compute, "output": {"dtype": dtype}}
    b.run(b.recipe(folder, **fields))
    assert look(folder).status is Status.PASS


def test_fused_transposed_and_whole_tensors_verify(tmp_path: Path) -> None:
    b.save(tmp_path / "base" / "model.safetensors", b.gpt2(), metadata={"format": "pt"})
    modules = {
        "h.0.attn.c_attn": b.lora((24, 8), dora="magnitude"),
        "h.0.mlp.c_proj": b.lora((8, 32)),
    }
    b.peft(tmp_path / "lora", modules, fan_in_fan_out=True, use_dora=True)
    modules["h.0.mlp.c_proj"] |= {"magnitude": torch.ones(8)}
    b.peft(tmp_path / "lora", modules, fan_in_fan_out=True, use_dora=True)
    path = b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"})
    b.run(path)
    assert verify(load_recipe(path), None, BOTH).status is Status.PASS


def test_a_folder_whose_files_are_called_the_same_verifies(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "base")
    b.sd1_lora(tmp_path / "lora.safetensors")
    recipe = b.recipe(tmp_path, base="base", output={"path": "out"})
    out = b.run(recipe).path
    verification = verify(load_recipe(recipe), None, BOTH)
    assert verification.is_true
    stem = "diffusion_pytorch_model.safetensors"
    files = {f"unet/{stem}", f"vae/{stem}", "text_encoder/model.safetensors"}
    for name in ("structure.order", "weights.digest"):
        assert {each.subject for each in verification.findings if each.check == name} == files
    spoilt = out / "vae" / stem
    entries, metadata, data = b.header(spoilt)
    text = json.dumps({"__metadata__": metadata, **dict(reversed(entries.items()))}).encode()
    spoilt.write_bytes(len(text).to_bytes(8, "little") + text + data)
    findings = verify(load_recipe(recipe), None, BOTH).findings
    wrong = {(each.check, each.subject) for each in findings if each.status == "fail"}
    assert ("structure.order", f"vae/{stem}") in wrong
    assert ("weights.digest", f"unet/{stem}") not in wrong


# -- files of other tools -----------------------------------------------------------------------------------


def test_a_right_merge_by_another_tool_is_true(folder: Path) -> None:
    save_plain(folder, merged(folder, 0.8, 0.5))
    verification = look(folder)
    assert verification.is_true
    assert found(verification, Status.SKIP)["structure.metadata"].note.startswith("no recipe in its metadata")


def test_strengths_of_several_loras_are_told_apart(folder: Path) -> None:
    save_plain(folder, merged(folder, 0.8, 0.31))
    verification = look(folder)
    (fault,) = found(verification).values()
    assert (fault.check, fault.subject) == ("weights.strength", "two.safetensors")
    assert fault.measured == "×0.62 (strength 0.31, not 0.5)"
    told = {each.lora: each for each in verification.tensors if "to_q" in each.key}
    assert told["one.safetensors"].what == "applied"
    assert told["two.safetensors"].factor == pytest.approx(0.62, abs=0.02)


def test_a_flipped_sign_and_an_absent_lora_are_told(folder: Path) -> None:
    save_plain(folder, merged(folder, -0.8, 0.0))
    faults = found(look(folder))
    assert faults["weights.sign"].subject == "one.safetensors"
    assert faults["weights.missing"].subject == "two.safetensors"


def test_a_lora_that_the_recipe_does_not_have_is_described(folder: Path) -> None:
    tensors = merged(folder, 0.8, 0.5)
    stranger = b.lora((32, 32), seed=99, rank=3, size=0.3)
    key = b.SD1_KEYS[b.Q]
    tensors[key] = (tensors[key].double() + b.delta(stranger, (32, 32))).half()
    save_plain(folder, tensors)
    (fault,) = found(look(folder)).values()
    assert (fault.check, fault.subject) == ("weights.other_lora", key)
    assert "rank 3" in fault.note


def test_dropped_buffers_are_told(folder: Path) -> None:
    tensors = merged(folder, 0.8, 0.5)
    for key in [key for key in tensors if "position_ids" in key or key in ("betas", "v_pred")]:
        del tensors[key]
    save_plain(folder, tensors)
    (fault,) = found(look(folder)).values()
    assert fault.check == "structure.keys"
    assert fault.measured == "3 missing"


def test_a_change_below_the_outputs_resolution_warns(folder: Path) -> None:
    b.sd1_lora(folder / "faint.safetensors", rank=4, size=0.008)
    b.run(b.recipe(folder, loras=["faint.safetensors"]))
    warned = found(look(folder), Status.WARN)["weights.resolution"]
    assert warned.subject == "faint.safetensors"
    assert float(warned.measured.rstrip("%")) < 90


def test_other_bytes_of_the_same_number_are_a_difference(folder: Path) -> None:
    key = "model.diffusion_model.out.2.bias"
    for name in ("base", "out"):
        tensors = load_file(folder / f"{name}.safetensors")
        tensors[key][0] = 0.0 if name == "base" else -0.0
        b.save(folder / f"{name}.safetensors", tensors)
    fault = found(look(folder))["weights.values"]
    assert (fault.subject, "other bytes" in fault.note) == (key, True)


def test_a_number_where_the_base_has_none_is_a_difference(folder: Path) -> None:
    key = "model.diffusion_model.out.2.bias"
    base = load_file(folder / "base.safetensors")
    base[key][0] = float("nan")
    b.save(folder / "base.safetensors", base)
    b.run(b.recipe(folder, loras=["one.safetensors"], output={"dtype": "float32"}))
    assert look(folder).status is Status.PASS
    tensors = load_file(folder / "out.safetensors")
    tensors[key][0] = 0.0
    save_plain(folder, tensors)
    assert [each.subject for each in found(look(folder)).values()] == [key]


def test_a_file_that_lacks_tensors_is_never_true(folder: Path) -> None:
    tensors = merged(folder, 0.8, 0.5)
    del tensors[b.SD1_KEYS[b.Q]]
    save_plain(folder, tensors)
    assert "structure.keys" in found(look(folder, stages=("weights",)))


def test_a_sample_of_the_weights_is_said_to_be_one(folder: Path) -> None:
    verification = look(folder, sample_weights=20)
    assert verification.is_true
    assert found(verification, Status.SKIP)["weights.sampled"].subject.startswith("20 of ")


def test_a_folder_with_a_changed_config_is_not_the_same(tmp_path: Path) -> None:
    b.llama(tmp_path / "base", shards=2)
    b.peft(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": b.lora((8, 8))})
    path = b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"})
    out = b.run(path).path
    assert verify(load_recipe(path), None, BOTH).status is Status.PASS
    (out / "config.json").write_text("{}")
    (out / "tokenizer.json").unlink()
    fault = found(verify(load_recipe(path), None, BOTH))["structure.side_files"]
    assert "config.json differs from the base's" in fault.note
    assert "tokenizer.json is missing" in fault.note


# -- the command --------------------------------------------------------------------------------------------


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(command, [*map(str, arguments), *STAGES], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value or 0, result.output


def test_the_command_says_verified_and_the_report_is_there(folder: Path) -> None:
    code, output = run(folder / "recipe.yaml", "--report", folder / "report")
    assert code == 0
    assert "Verified: " in output.splitlines()[-2]
    assert {each.name for each in (folder / "report").iterdir()} >= {"index.html", "report.json", "junit.xml"}


def test_a_difference_is_exit_code_one(folder: Path) -> None:
    save_plain(folder, merged(folder, 0.8, 0.31))
    code, output = run(folder / "recipe.yaml", "--quiet")
    assert code == 1
    assert output.splitlines()[-1].startswith("Mismatch: ")
    assert "pass" not in output.splitlines()[1]


def test_a_file_alone_carries_its_recipe(folder: Path) -> None:
    code, output = run(folder / "out.safetensors", "--json")
    assert code == 0
    assert check(output)["verdict"] == "verified"


def test_inputs_elsewhere_are_named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    away = tmp_path_factory.mktemp("away") / "out.safetensors"
    (folder / "out.safetensors").rename(away)
    with pytest.raises(FileError, match="Say in which folders they lie with"):
        run(away)
    assert run(away, "--inputs", folder)[0] == 0


def test_what_lorabake_did_not_bake_has_no_recipe(folder: Path) -> None:
    with pytest.raises(FileError, match="holds no recipe"):
        embedded_recipe(folder / "base.safetensors")


def test_a_checkpoint_that_is_not_there_is_the_inputs_fault(folder: Path) -> None:
    (folder / "out.safetensors").unlink()
    with pytest.raises(FileError, match=r"no such file\nBake it first"):
        look(folder)


@pytest.mark.parametrize("option", [("--size", "big"), ("--size", "64x"), ("--strengths", "0,x"), ("--inputs", ".")])
def test_wrong_options_are_told(folder: Path, option: tuple[str, str]) -> None:
    with pytest.raises(Exception, match=option[0]):
        run(folder / "recipe.yaml", *option)


def test_blocks_are_in_the_order_in_which_a_model_runs() -> None:
    blocks = [
        "up_blocks.0.resnets.0",
        "mid_block.attentions.0",
        "down_blocks.0.downsamplers.0",
        "down_blocks.0.attentions.0",
        "down_blocks.0.resnets.1",
        "down_blocks.0.resnets.0",
        "conv_in",
    ]
    assert sorted(blocks, key=in_order) == [
        "conv_in",
        "down_blocks.0.resnets.0",
        "down_blocks.0.attentions.0",
        "down_blocks.0.resnets.1",
        "down_blocks.0.downsamplers.0",
        "mid_block.attentions.0",
        "up_blocks.0.resnets.0",
    ]
    assert sorted(["model.layers.10", "model.layers.9"], key=in_order) == ["model.layers.9", "model.layers.10"]


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.1.attentions.0"),
        ("mid_block.attentions.0.transformer_blocks.3.ff.net.2", "mid_block.attentions.0"),
        ("text_model.encoder.layers.3.self_attn.q_proj", "text_model.encoder.layers.3"),
        ("transformer_blocks.7.attn.to_out.0", "transformer_blocks.7"),
        ("lm_head", "lm_head"),
    ],
)
def test_a_module_is_shortened_to_its_block(module: str, block: str) -> None:
    assert block_of(module) == block


# -- what verified what --------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_report_names_versions_command_and_the_digests_of_base_and_output(folder: Path) -> None:
    arguments = (folder / "recipe.yaml", "--report", folder / "report", "--date", "2026-11-29")
    assert run(*arguments)[0] == 0
    told = json.loads((folder / "report" / "report.json").read_text())["environment"]
    versions = {each["package"]: each["version"] for each in told["versions"]}
    assert versions.keys() == {"lorabake", "Python", "torch", "numpy"}
    assert versions["torch"] == torch.__version__
    assert (told["device"], told["baked_on"], told["date"]) == ("cpu", "cpu", "2026-11-29")
    stages = "--stage structure --stage weights"
    assert told["command"] == f"lorabake verify recipe.yaml --report report --date 2026-11-29 {stages}"
    for part, name in (("base", "base.safetensors"), ("output", "out.safetensors")):
        digests = [{"path": name, "sha256": sha256(folder / name)}]
        assert told[part] == {"path": name, "of": "files", "digests": digests}
    assert str(folder) not in "".join(path.read_text() for path in (folder / "report").iterdir())


def test_what_reads_headers_alone_names_their_digests(folder: Path) -> None:
    options = VerifyOptions(stages=("structure",), digests=True)
    told = verify(load_recipe(folder / "recipe.yaml"), None, options).environment
    assert told
    assert told.output
    assert (told.base.is_whole, told.output.is_whole, told.command, told.date) == (False, False, "", "")
    assert told.base.digests == {"base.safetensors": read_header(folder / "base.safetensors").sha256}


def test_digests_are_taken_only_if_asked_for(folder: Path) -> None:
    told = verify(load_recipe(folder / "recipe.yaml"), None, BOTH).environment
    assert told
    assert not told.base.is_whole


def test_a_file_that_cannot_be_read_has_no_digest(folder: Path) -> None:
    (folder / "out.safetensors").write_bytes((folder / "out.safetensors").read_bytes()[:100])
    told = verify(load_recipe(folder / "recipe.yaml"), None, replace(BOTH, digests=True)).environment
    assert told
    assert told.output is None


def test_an_accelerator_is_named_by_its_product(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", {"cuda:1": "NVIDIA H200"}.__getitem__)
    planned = plan(load_recipe(folder / "recipe.yaml"))
    for device, name in (("cuda:1", "cuda:1 (NVIDIA H200)"), ("mps", "mps")):
        told = environment_of(planned, None, Samples("PEFT", {"device": device}), {}, command="", date="")
        assert told.device == name
        assert told.versions.keys() >= {"lorabake", "torch", "numpy"}


@pytest.mark.parametrize("date", ["yesterday", "2026-13-01", "29.11.2026"])
def test_a_date_that_is_none_is_refused(folder: Path, date: str) -> None:
    with pytest.raises(RecipeError, match=f"--date {date}: give a date such as 2026-11-29"):
        run(folder / "recipe.yaml", "--date", date)


# -- what is printed when ------------------------------------------------------------------------------------


def test_each_stage_is_printed_when_it_is_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop in the weights stage leaves the findings of the structure stage, and says what was not over."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMPARING, "weights", stop)
    code, output = run(folder / "recipe.yaml")
    assert code == 130
    assert "pass metadata" in output
    assert output.splitlines()[-1] == "stopped: structure was over, and its findings were printed; not over: weights"


def test_a_stop_before_the_end_of_the_first_stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "check_structure", stop)
    code, output = run(folder / "recipe.yaml", "--json")
    assert (code, output) == (130, "stopped before any stage was over: nothing was found out\n")


def test_a_report_that_fails_at_the_end_loses_no_finding(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise SurroundingsError("the disk is full")

    monkeypatch.setattr("lorabake.report.write", fail)
    with pytest.raises(SurroundingsError, match="the disk is full"):
        command.main([str(folder / "recipe.yaml"), *STAGES, "--report", str(folder / "r")], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "pass baked" in shown
    assert shown.splitlines()[-1].startswith("Verified: ")


def test_that_no_report_can_be_written_is_told_before_the_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lorabake.cli.proofs.write_whole", full)
    monkeypatch.setattr("lorabake.cli.verify.run_verify", lambda *_: pytest.fail("the work has begun"))
    with pytest.raises(SurroundingsError, match="cannot write the report: No space left on device"):
        run(folder / "recipe.yaml", "--report", folder / "r")


@pytest.mark.parametrize("stage", ["weights", "quick"])
def test_each_file_is_read_once_for_all_its_digests(
    folder: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report names the base and the output by their SHA-256, and the header states that of the output's data."""
    read: list[str] = []
    pieces = Digests._pieces

    def counted(self: Digests, path: Path, start: int, stop: int) -> Iterator[memoryview]:
        read.append(path.name)
        return pieces(self, path, start, stop)

    monkeypatch.setattr(Digests, "_pieces", counted)
    told = look(folder, stages=("structure", stage), digests=True).environment
    assert told is not None
    assert told.output is not None
    assert told.output.digests == {"out.safetensors": sha256(folder / "out.safetensors")}
    assert told.base.digests == {"base.safetensors": sha256(folder / "base.safetensors")}
    assert sorted(read) == ["base.safetensors", "one.safetensors", "out.safetensors", "two.safetensors"]
