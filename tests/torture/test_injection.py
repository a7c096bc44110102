"""Names, metadata and configurations that try to steer what is printed, or to forge it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.torture.conftest import Tally
from tests.torture.injections import PAYLOADS, WORLDS, faults_of, faults_of_reports, inputs
from tests.torture.surroundings import command


def test_what_files_say_stays_text(
    tally: Callable[[str, str], Tally], effort: Callable[[int, int], int], tmp_path: Path
) -> None:
    count = tally(
        "names, metadata and configurations that try to steer the terminal or forge a verdict",
        "what is printed holds no control character and no line but lorabake's own",
    )
    step, tried = effort(9, 1), 0
    for payload, evil in PAYLOADS.items():
        for world in WORLDS:
            tried += 1
            if tried % step:
                continue
            folder = tmp_path / f"{tried}"
            folder.mkdir()
            world(folder, evil)
            asked = [("inspect", name) for name in inputs(folder)]
            asked += [("plan", "recipe.yaml"), ("bake", "recipe.yaml", "--no-fsync")]
            asked += [("verify", "recipe.yaml", "--stage", "structure", "--stage", "weights", "--report", "report")]
            for arguments in asked:
                for json_too in ((), ("--json",)) if arguments[0] != "bake" else ((),):
                    outcome = command(folder, *arguments, *json_too)
                    fault = faults_of(outcome.out) or faults_of(outcome.err)
                    what = f"{world.__name__} with {payload}: {' '.join((*arguments, *json_too))!r}"
                    count.hold(
                        not fault and outcome.code in (0, 1, 2), f"{what}: {outcome.code} {fault} {outcome.err}"
                    )
                    if json_too and outcome.out:
                        json.loads(outcome.out)
            if (folder / "report").is_dir() and any((folder / "report").iterdir()):
                faults = [*faults_of_reports(folder / "report")]
                count.hold(not faults, f"{world.__name__} with {payload}: {faults}")


def test_arguments_of_the_command_line(tally: Callable[[str, str], Tally], tmp_path: Path) -> None:
    count = tally("file names given on the command line", "they are shown with escapes")
    for payload, evil in PAYLOADS.items():
        name = evil.replace("\0", "")
        for arguments in (
            ("plan", name),
            ("inspect", name),
            ("bake", f"--{name}"),
            (name,),
            ("verify", "a", "--size", name),
        ):
            outcome = command(tmp_path, *arguments)
            fault = faults_of(outcome.out) or faults_of(outcome.err)
            count.hold(not fault and outcome.code == 2, f"{payload}: {arguments[0]}: {outcome.code} {fault}")
