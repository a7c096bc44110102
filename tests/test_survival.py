"""How much of a LoRA survives a coarse dtype: the estimate against all values, the warning, and the stop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorabake import VerifyOptions, load_recipe, plan, verify
from lorabake.errors import ChangeLostError, MatchError
from lorabake.planning.cautions import cautions_of, cautions_of_recipe
from lorabake.reference.survival import estimate, survival
from lorabake.verification.findings import Finding
from tests import builders as b
from tests.documents import check

FC = "lora_unet_fc"


def cli(*arguments: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "lorabake", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def world(folder: Path, size: float, dtype: torch.dtype = torch.bfloat16) -> Path:
    b.save(folder / "base.safetensors", {"fc.weight": b.Values(1)(64, 48, dtype=dtype)})
    b.kohya(folder / "lora.safetensors", {FC: b.lora((64, 48), seed=2, size=size)})
    return b.recipe(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("size", [0.01, 0.1, 1.0])
def test_the_estimate_is_what_arrives(size: float, dtype: torch.dtype, tmp_path: Path) -> None:
    world(tmp_path, size, dtype)
    recipe = b.recipe(tmp_path, output={"allow_loss": True})
    (share,) = survival(plan(load_recipe(recipe))).values()
    before = load_file(tmp_path / "base.safetensors")["fc.weight"].double()
    after = load_file(b.run(recipe).path)["fc.weight"].double()
    due = b.delta(b.lora((64, 48), seed=2, size=size), (64, 48))
    arrived = float(((after - before) * due).sum() / (due * due).sum())
    assert share == pytest.approx(min(arrived, 1), abs=1e-4), "a share is at most the whole"


def test_a_lora_that_fades_is_told_and_one_that_vanishes_stops_the_bake(tmp_path: Path) -> None:
    recipe = world(tmp_path, 0.01, torch.float8_e4m3fn)
    code, stopped = cli("bake", recipe, "--no-fsync")
    assert code == 2
    assert "of its change would survive the output's dtype" in stopped
    assert "allow_loss" in stopped
    assert not (tmp_path / "out.safetensors").exists()
    recipe = b.recipe(tmp_path, output={"allow_loss": True})
    code, allowed = cli("bake", recipe, "--no-fsync")
    assert code == 0
    assert "warning: LoRA 'lora.safetensors': about" in allowed


def test_plan_estimates_on_demand(tmp_path: Path) -> None:
    recipe = world(tmp_path, 1.0)
    assert "of its change survives the output's dtype" in cli("plan", recipe, "--estimate")[1]
    (survival,) = check(cli("plan", recipe, "--estimate", "--json")[1])["survival"]
    assert survival["lora"] == "lora.safetensors"
    assert survival["share"] > 0.9
    assert check(cli("plan", recipe, "--json")[1])["survival"] is None


@pytest.mark.parametrize("rows", [slice(2048, None), slice(0, 2048), slice(1000, 1003)], ids=str)
def test_a_change_of_few_rows_is_seen(rows: slice, tmp_path: Path) -> None:
    """It may be anywhere: the second half, or three rows that no sample meets."""
    b.save(tmp_path / "base.safetensors", {"fc.weight": b.Values(1)(4096, 256, dtype=torch.float8_e4m3fn)})
    slots = b.lora((4096, 256), size=0.003)
    kept = torch.zeros_like(slots["up"])
    kept[rows] = slots["up"][rows]
    b.kohya(tmp_path / "lora.safetensors", {FC: slots | {"up": kept}})
    recipe = b.recipe(tmp_path)
    (share,) = survival(plan(load_recipe(recipe))).values()
    assert share < 0.1
    with pytest.raises(ChangeLostError, match="of its change would survive"):
        b.run(recipe)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_lora_of_zeros_has_nothing_to_lose(dtype: torch.dtype, tmp_path: Path) -> None:
    recipe = world(tmp_path, 0.0, dtype)
    assert survival(plan(load_recipe(recipe))) == {}
    assert b.run(recipe).survival == {}


def test_the_library_tells_and_warns_as_the_command_line_does(tmp_path: Path) -> None:
    recipe = world(tmp_path, 0.1)
    warnings: list[str] = []
    result = b.run(recipe, warn=warnings.append)
    assert result.survival == survival(result.plan)
    assert result.report()["survival"] == [{"lora": "lora.safetensors", "share": round(result.survival[0], 4)}]
    assert (warnings != []) == (result.survival[0] < 0.9)
    assert [str(each) for each in result.cautions] == []  # what a coarse dtype keeps is told before


def test_each_lora_has_its_own_share(tmp_path: Path) -> None:
    world(tmp_path, 1.0)
    b.kohya(tmp_path / "faint.safetensors", {FC: b.lora((64, 48), seed=5, size=0.02)})
    recipe = b.recipe(tmp_path, loras=["lora.safetensors", "faint.safetensors"])
    strong, faint = survival(plan(load_recipe(recipe))).values()
    assert strong == pytest.approx(1, abs=0.02)
    assert 0 < faint < 2  # beside a strong one a faint LoRA is rounded with it, not swallowed


# -- Told by a bake as it goes, at no cost: float16 and float32, too ------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [1e-4, 0.01, 0.05, 0.3])
def test_a_bake_sees_what_arrives(size: float, dtype: torch.dtype, tmp_path: Path) -> None:
    """It looks at a few rows of each weight; the estimate looks at others, and verify at all."""
    names = [f"m{n}" for n in range(12)]
    b.save(
        tmp_path / "base.safetensors", {f"{m}.weight": b.Values(n)(256, 96, dtype=dtype) for n, m in enumerate(names)}
    )
    modules = {f"lora_unet_{m}": b.lora((256, 96), seed=n, size=size) for n, m in enumerate(names)}
    b.kohya(tmp_path / "lora.safetensors", modules)
    recipe = b.recipe(tmp_path)
    warnings: list[str] = []
    result = b.run(recipe, warn=warnings.append)
    assert result.survival[0] == pytest.approx(survival(result.plan)[0], abs=0.05)
    fades = size < (0.05 if dtype == torch.float16 else 0.001)
    assert [each for each in warnings if "survives the output's dtype" in each] == warnings[: int(fades)]
    checks = {each.check for each in findings(recipe) if each.status == "warn"}
    assert ("weights.resolution" in checks) == fades
    assert {each.check for each in cautions_of(result.plan, estimate(result.plan))} == (
        {"resolution"} if fades else set()
    )


def findings(recipe: Path, stage: str = "weights") -> list[Finding]:
    return list(verify(load_recipe(recipe), options=VerifyOptions(stages=(stage,))).findings)


def warned(recipe: Path) -> dict[str, list[str]]:
    """Plan, bake and verify; return what each of them warns of one LoRA's change, by its name."""
    made = plan(load_recipe(recipe))
    by_all = {"plan": [each.check for each in (*cautions_of_recipe(made), *cautions_of(made, estimate(made)))]}
    by_all["bake"] = [each.check for each in b.run(recipe).cautions]
    for stage in ("weights", "quick"):
        found = [each for each in findings(recipe, stage) if each.status == "warn"]
        by_all[stage] = [each.check.split(".")[1] for each in found]
    return by_all


@pytest.mark.parametrize(
    ("entries", "size", "checks"),
    [
        ([{"strength": 1}], 0.2, []),
        ([{"strength": -1}], 0.2, []),
        ([{"strength": 50}], 0.02, ["strength"]),
        ([{"strength": -10}], 0.02, ["strength"]),
        ([{"strength": 2, "blocks": {"fc": 8}}], 0.02, ["strength"]),
        ([{"strength": 50, "blocks": {"fc": 0.1}}], 0.02, []),
        ([{}, {}], 0.2, ["twice"]),
        ([{}, {}, {}], 0.2, ["twice", "twice"]),
        ([{"components": ["model"]}, {}], 0.2, ["twice"]),
        ([{"strength": 50}], 1.0, ["strength", "large"]),
        ([{}], 3.0, ["large"]),
    ],
)
def test_what_is_absurd_is_told_by_all(
    entries: list[dict[str, object]], size: float, checks: list[str], tmp_path: Path
) -> None:
    world(tmp_path, size, torch.float32)
    recipe = b.recipe(tmp_path, loras=[{"path": "lora.safetensors", **entry} for entry in entries])
    found = warned(recipe)
    quick = [check for check in checks if check != "large"]  # random sums do not tell sizes
    assert found == {"plan": checks, "bake": checks, "weights": checks, "quick": quick}
    told = [each.check for each in cautions_of_recipe(plan(load_recipe(recipe)))]
    assert told == quick  # a plan that reads no tensor knows the recipe


@pytest.mark.parametrize("way", ["symbolic link", "hard link", "copy", "another file", "other modules"])
def test_one_file_under_two_names_is_told(way: str, tmp_path: Path) -> None:
    world(tmp_path, 0.2, torch.float32)
    first, second = tmp_path / "lora.safetensors", tmp_path / "other.safetensors"
    match way:
        case "symbolic link":
            second.symlink_to(first)
        case "hard link":
            second.hardlink_to(first)
        case "copy":
            second.write_bytes(first.read_bytes())
        case "another file":
            b.kohya(second, {FC: b.lora((64, 48), seed=3, size=0.2)})
        case _:
            second.symlink_to(first)
    entries: list[object] = ["lora.safetensors", "other.safetensors"]
    if way == "other modules":
        entries[1] = {"path": "other.safetensors", "blocks": {"fc": 0}}
    found = warned(b.recipe(tmp_path, loras=entries))
    told = way.endswith(("link", "copy"))
    assert found == {
        "plan": ["twice"] * way.endswith("link"),
        **dict.fromkeys(("bake", "weights", "quick"), ["twice"] * told),
    }


@pytest.mark.parametrize("by", ["tensor", "configuration", "pattern"])
def test_a_negative_alpha_is_told(by: str, tmp_path: Path) -> None:
    world(tmp_path, 0.2, torch.float32)
    slots = b.lora((64, 48), size=0.2)
    if by == "tensor":
        b.kohya(tmp_path / "lora.safetensors", {FC: slots | {"alpha": torch.tensor(-2.0)}})
        found = warned(b.recipe(tmp_path))
    else:
        said = {"lora_alpha": -2} if by == "configuration" else {"alpha_pattern": {"fc": -2}}
        b.peft(tmp_path / "lora", {"fc": slots}, **said)
        recipe = b.recipe(tmp_path, loras=["lora"])
        found = warned(recipe)
        code, shown = cli("plan", recipe)
        assert code == 0
        assert "warning   LoRA 'lora': its configuration says a negative alpha for 1 of 1 modules" in shown
    assert found == {who: ["alpha"] for who in found}


ZERO_SCALES: dict[str, dict[str, object]] = {
    "configuration": {"lora_alpha": 0},
    "pattern": {"lora_alpha": 2, "alpha_pattern": {"fc": 0}},
    "rsLoRA": {"lora_alpha": 0.0, "use_rslora": True},
}


@pytest.mark.parametrize("by", ZERO_SCALES)
@pytest.mark.parametrize("semantics", [None, "peft", "comfyui", "forge", "a1111", "lycoris"], ids=str)
def test_an_alpha_of_0_in_a_configuration_is_no_scale_either(by: str, semantics: str | None, tmp_path: Path) -> None:
    world(tmp_path, 0.2, torch.float32)
    slots = b.lora((64, 48), size=0.2)
    b.peft(tmp_path / "lora", {"fc": slots}, **ZERO_SCALES[by])
    entry = {"path": "lora", **({"semantics": semantics} if semantics else {})}
    recipe = b.recipe(tmp_path, loras=[entry])
    if semantics is None:
        with pytest.raises(MatchError, match="its configuration says an alpha of 0, which is no scale"):
            b.run(recipe)
        assert not (tmp_path / "out.safetensors").exists()
        return
    found = warned(recipe)
    whole = semantics == "lycoris"
    assert found == dict.fromkeys(found, [] if whole else ["zero"])
    after, before = (load_file(tmp_path / f"{name}.safetensors")["fc.weight"].double() for name in ("out", "base"))
    assert torch.allclose(after, before + b.delta(slots, (64, 48), 1.0) * whole, atol=1e-6)


def test_modules_of_rank_0_alone_are_told(tmp_path: Path) -> None:
    world(tmp_path, 0.2, torch.float32)
    empty = {"up": torch.empty(64, 0), "down": torch.empty(0, 48)}
    b.kohya(tmp_path / "lora.safetensors", {FC: empty | {"alpha": torch.tensor(1.0)}})
    found = warned(b.recipe(tmp_path))
    assert found == {who: ["zero"] for who in found}
    assert b.tensor_bytes(tmp_path / "out.safetensors") == b.tensor_bytes(tmp_path / "base.safetensors")


@pytest.mark.parametrize("form", ["magnitude", "row", "column"])
@pytest.mark.parametrize("zeros", ["all", "one"])
def test_dora_magnitudes_of_zero_are_told(form: str, zeros: str, tmp_path: Path) -> None:
    world(tmp_path, 0.2, torch.float32)
    slots = b.lora((64, 48), dora=form, size=0.2)
    name = "magnitude" if form == "magnitude" else "dora_scale"
    slots[name].view(-1)[: None if zeros == "all" else 1] = 0
    if form == "magnitude":
        b.peft(tmp_path / "lora", {"fc": slots}, use_dora=True)
    else:
        b.kohya(tmp_path / "lora.safetensors", {FC: slots})
    found = warned(b.recipe(tmp_path, loras=["lora" if form == "magnitude" else "lora.safetensors"]))
    assert found == {who: ["magnitude"] for who in found}


def test_workers_do_not_change_what_is_told(tmp_path: Path) -> None:
    names = [f"m{n}" for n in range(100)]
    b.save(tmp_path / "base.safetensors", {f"{m}.weight": b.Values(n)(32, 24).half() for n, m in enumerate(names)})
    modules = {f"lora_unet_{m}": b.lora((32, 24), seed=n, size=0.02) for n, m in enumerate(names)}
    b.kohya(tmp_path / "lora.safetensors", modules)
    recipe = b.recipe(tmp_path)
    one, four = (b.run(recipe, workers=workers) for workers in (1, 4))
    assert one.survival == four.survival
    assert one.cautions == four.cautions


@pytest.mark.parametrize("way", ["the same file", "another name", "another file of the name", "ModelSpec", "neither"])
def test_a_lora_that_the_base_holds_already_is_told(way: str, tmp_path: Path) -> None:
    """Plan, bake and verify warn of a second helping; a base that another tool merged names what is in it."""
    world(tmp_path, 0.2, torch.float32)
    name = "lora.safetensors"
    if way == "ModelSpec":
        _, metadata, _ = b.header(tmp_path / "base.safetensors")
        tensors = load_file(tmp_path / "base.safetensors")
        b.save(tmp_path / "held.safetensors", tensors, {**metadata, "modelspec.merged_from": "sd15, my-lora (0.5)"})
        (tmp_path / name).rename(tmp_path / "my-lora.safetensors")
        name = "my-lora.safetensors"
    else:
        loras = [{"path": name, "strength": 0.5}]
        b.run(b.recipe(tmp_path, loras=loras, output={"path": "held.safetensors"}))
    if way in ("another name", "neither"):
        (tmp_path / name).rename(tmp_path / "another.safetensors")
        name = "another.safetensors"
    if way in ("another file of the name", "neither"):
        b.kohya(tmp_path / name, {FC: b.lora((64, 48), seed=9, size=0.2)})
    recipe = b.recipe(tmp_path, base="held.safetensors", loras=[name])
    told = [] if way == "neither" else ["held"]
    assert warned(recipe) == dict.fromkeys(("plan", "bake", "weights", "quick"), told)
    for caution in cautions_of_recipe(plan(load_recipe(recipe))):
        known = "file already at strength 0.5" if way in ("the same file", "another name") else ""
        known = known or ("a LoRA of this name" if "file" in way else "modelspec.merged_from")
        assert known in caution.note


def test_what_headers_tell_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world(tmp_path, 0.2, torch.float32)
    recipe = b.recipe(tmp_path, loras=[{"path": "lora.safetensors", "strength": 50}])
    told: list[str] = []

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lorabake.baking.execute", stop)
    with pytest.raises(KeyboardInterrupt):
        b.run(recipe, warn=told.append)
    assert ["its strength is 50" in line for line in told] == [True]
