"""The action for GitHub: its steps are run as a runner does, with a cache of files in the place of GitHub's."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from lorabake.recipe import load_recipe
from tests import builders as b

ROOT = Path(__file__).resolve().parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = ACTION["runs"]["steps"]


@dataclass
class Runner:
    """Run the steps in a folder; `cache` maps keys to copies of files or folders."""

    workspace: Path
    cache: dict[str, Path] = field(default_factory=dict)
    printed: str = ""
    ran: list[str] = field(default_factory=list)

    def run(self, **inputs: str) -> dict[str, str]:
        """Run all steps; return the action's outputs, with `failed` for the step that failed."""
        self.printed, self.ran = "", []
        given = {name: said.get("default", "") for name, said in ACTION["inputs"].items()} | inputs
        outputs: dict[str, dict[str, str]] = {}
        failed = ""
        for step in STEPS:
            if not self._is_due(step.get("if", ""), given, outputs, failed):
                continue
            self.ran.append(step["name"])
            code, told = self._step(step, given, outputs)
            outputs[step.get("id", step["name"])] = told
            failed = failed or (step["name"] if code else "")
        results = {name: self._filled(said["value"], given, outputs) for name, said in ACTION["outputs"].items()}
        return results | {"failed": failed}

    def _is_due(self, condition: str, given: dict[str, str], outputs: dict[str, dict[str, str]], failed: str) -> bool:
        if failed and "always()" not in condition:
            return False
        words = re.sub(r"always\(\)\s*&&", "", condition)
        for clause in filter(None, (clause.strip() for clause in words.split("&&"))):
            match = re.fullmatch(r"([\w.-]+) (==|!=) '([^']*)'", clause)
            assert match, clause
            value = self._filled("${{ " + match[1] + " }}", given, outputs)
            if (value == match[3]) != (match[2] == "=="):
                return False
        return True

    def _filled(self, text: str, given: dict[str, str], outputs: dict[str, dict[str, str]]) -> str:
        def value(match: re.Match[str]) -> str:
            match match[1].split("."):
                case ["inputs", name]:
                    return given[name]
                case ["steps", step, "outputs", name]:
                    return outputs.get(step, {}).get(name, "")
            raise AssertionError(match[0])

        return re.sub(r"\$\{\{ ([\w.-]+) \}\}", value, text)

    def _step(self, step: dict, given: dict, outputs: dict) -> tuple[int, dict[str, str]]:  # type: ignore[type-arg]
        if "uses" in step:
            told = {name: self._filled(text, given, outputs) for name, text in step["with"].items()}
            return 0, self._cached(step["uses"], told["key"], Path(told["path"]))
        assert "${{" not in step["run"], "an expression in a script is open to injection"
        output = self.workspace / ".outputs"
        output.write_text("")
        env = {name: self._filled(text, given, outputs) for name, text in step.get("env", {}).items()}
        folder = self.workspace / self._filled(step.get("working-directory", "."), given, outputs)
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=folder,
            env=os.environ | self._surroundings() | env | {"GITHUB_OUTPUT": str(output)},
            capture_output=True,
            text=True,
        )
        self.printed += done.stdout + done.stderr
        lines = output.read_text().splitlines()
        return done.returncode, dict(line.split("=", 1) for line in lines)

    def _cached(self, action: str, key: str, path: Path) -> dict[str, str]:
        kept = self.workspace.parent / "cache" / key
        if action.startswith("actions/cache/save@"):
            kept.parent.mkdir(exist_ok=True)
            shutil.copy2(path, kept)
            self.cache[key] = kept
            return {}
        assert action.startswith("actions/cache/restore@")
        if key not in self.cache:
            return {}
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(self.cache[key], path)
        return {"cache-hit": "true"}

    def _surroundings(self) -> dict[str, str]:
        """Return what a runner sets, with the lorabake under test first on the path."""
        programs = self.workspace.parent / "bin"
        programs.mkdir(exist_ok=True)
        program = programs / "lorabake"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lorabake "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        (programs / "python").unlink(missing_ok=True)
        (programs / "python").symlink_to(sys.executable)
        return {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "CI": "true",
            "GITHUB_WORKSPACE": str(self.workspace),
            "GITHUB_STEP_SUMMARY": str(self.workspace / "summary.md"),
            "GITHUB_ACTION_PATH": str(ROOT),
            "LORABAKE_DEVICE": "cpu",
        }


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    b.save(workspace / "base.safetensors", b.sd1(extras=False))
    b.sd1_lora(workspace / "lora.safetensors")
    b.recipe(workspace)
    return Runner(workspace)


def test_a_first_run_bakes_and_proves_and_a_second_takes_it_from_the_cache(runner: Runner) -> None:
    first = runner.run(recipe="recipe.yaml")
    output = runner.workspace / "out.safetensors"
    assert first["failed"] == "", runner.printed
    assert first["path"] == str(output)
    assert first["sha256"] == b.sha256(output)
    assert first["verdict"] == "verified"
    assert re.fullmatch(r"[0-9a-f]{64}", first["key"])
    summary = (runner.workspace / "summary.md").read_text()
    assert "Verified" in summary
    assert "Put the output into the cache" in runner.ran

    output.unlink()
    second = runner.run(recipe="recipe.yaml")
    assert second == first
    assert not {"Bake, unless the cache had the output", "Put the output into the cache"} & {*runner.ran}


def test_a_changed_recipe_has_another_key(runner: Runner) -> None:
    first = runner.run(recipe="recipe.yaml", stages="none")
    assert first["verdict"] == "skipped"
    b.recipe(runner.workspace, loras=[{"path": "lora.safetensors", "strength": 0.5}])
    second = runner.run(recipe="recipe.yaml", **{"stages": "none", "bake-options": "--overwrite"})
    assert second["failed"] == "", runner.printed
    assert second["key"] != first["key"]
    assert second["sha256"] != first["sha256"]


def test_a_file_that_rotted_in_the_cache_is_a_mismatch(runner: Runner) -> None:
    runner.run(recipe="recipe.yaml")
    (kept,) = runner.cache.values()
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.write_bytes(data)
    (runner.workspace / "out.safetensors").unlink()
    told = runner.run(recipe="recipe.yaml")
    assert (told["failed"], told["verdict"]) == ("Verify", "mismatch")
    assert "::error file=recipe.yaml,line=" in runner.printed


def test_a_fault_in_the_recipe_is_annotated_and_nothing_is_baked(runner: Runner) -> None:
    b.recipe(runner.workspace, loras=[{"path": "lora.safetensors", "weight": 1}])
    told = runner.run(recipe="recipe.yaml")
    assert told["failed"].startswith("Check the recipe")
    assert "::error file=recipe.yaml,line=5,col=3,title=lorabake::unknown key 'weight'" in runner.printed
    assert not (runner.workspace / "out.safetensors").exists()
    assert len(runner.ran) == 2


def test_a_stale_lock_is_annotated_and_stops_the_job(runner: Runner) -> None:
    import lorabake

    lorabake.lock(load_recipe(runner.workspace / "recipe.yaml"))
    b.sd1_lora(runner.workspace / "lora.safetensors", seed=9)
    told = runner.run(recipe="recipe.yaml")
    assert told["failed"].startswith("Check the recipe")
    assert "::error file=recipe.yaml,line=" in runner.printed


def test_options_and_folders_with_spaces_reach_the_commands(runner: Runner) -> None:
    folder = runner.workspace / "my recipes"
    folder.mkdir()
    for name in ("base.safetensors", "lora.safetensors", "recipe.yaml"):
        (runner.workspace / name).rename(folder / name)
    told = runner.run(
        recipe="recipe.yaml",
        **{
            "working-directory": "my recipes",
            "report": "the report",
            "stages": "structure",
            "bake-options": "--report 'what happened.json' --no-fsync",
            "verify-options": "--date 2026-11-29",
        },
    )
    assert told["failed"] == "", runner.printed
    assert (folder / "what happened.json").is_file()
    assert "2026-11-29" in (folder / "the report" / "summary.md").read_text()


def test_the_actions_metadata_is_whole() -> None:
    assert {"name", "description", "runs", "inputs", "outputs"} <= ACTION.keys()
    for step in STEPS:
        assert step["name"]
        assert ("uses" in step) != ("run" in step)
        assert "run" not in step or step["shell"] == "bash"
    given = re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text())
    assert {*given} == {*ACTION["inputs"]}, "each input is used"
