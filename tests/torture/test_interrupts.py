"""Ctrl-C between any two lines of the start and the end of a bake: it stops at once, and leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import builders as b
from tests.torture.conftest import Tally

ROOT = Path(__file__).parents[2]
SECONDS = 60

# Each child of this process bakes, and raises SIGINT (or fails to start a thread) before its line number `at`.
SCRIPT = """
    import json, os, signal, sys, threading, time, traceback
    import lorabake.execution.device, lorabake.execution.worker
    from lorabake import baking, execution, interrupts
    from lorabake.execution import agenda, crew, running
    from lorabake.baking import bake
    from lorabake.options import RunOptions
    from lorabake.errors import LorabakeError
    from lorabake.baking import plan
    from lorabake.recipe import load_recipe
    from lorabake.writing import beside, commit, finished, folder, journal, onefile, output, together
    from lorabake.writing import partial, target, weights
    from lorabake.writing.system import posix

    recipe, every = sys.argv[1], int(sys.argv[2])
    traced = [baking, agenda, crew, execution, interrupts, posix, running, threading]
    traced += [beside, commit, finished, folder, journal, onefile, output, partial, target, together, weights]
    files = {module.__file__ for module in traced}
    made = plan(load_recipe(recipe))

    def child(at, back):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        count, is_done = 0, []

        def trace(frame, event, argument):
            nonlocal count
            if frame.f_code.co_filename not in files:
                return None
            if event == "line":
                if count == at:
                    signal.raise_signal(signal.SIGINT)
                count += 1
            return trace

        options = RunOptions(workers=3, fsync=False, overwrite=True, done=lambda: is_done.append(True))
        sys.settrace(trace)
        try:
            bake(made, options)
            end = "done"
        except KeyboardInterrupt:
            end = "interrupted"
        except BaseException:
            end = traceback.format_exc()
        sys.settrace(None)
        os.write(back, json.dumps([end, count, bool(is_done), threading.active_count()]).encode())
        os._exit(0)

    def run(at):
        front, back = os.pipe()
        pid = os.fork()
        if not pid:
            child(at, back)
        os.close(back)
        began = time.monotonic()
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() - began > float(sys.argv[3]):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return ["hangs", 0, False, 0]
            time.sleep(0.002)
        with open(front, "rb") as said:
            return json.loads(said.read())

    count = run(-1)[1]
    print("ready", flush=True)
    sys.stdin.readline()
    for at in range(0, count, every):
        print(json.dumps([at, count, *run(at)]), flush=True)
        sys.stdin.readline()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_interrupt_before_each_line(
    tmp_path: Path, tally: Callable[[str, str], Tally], effort: Callable[[int, int], int]
) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    recipe, target = b.recipe(tmp_path), tmp_path / "out.safetensors"
    interrupts = tally(
        "Ctrl-C before each line of the code that starts, joins and commits",
        "the bake ends: the target is the old one, or the new one where the program was told so; nothing is left",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), recipe, str(effort(97, 3)), str(SECONDS)],
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "ready\n"
        target.write_bytes(b"old")
        process.stdin.write("\n")
        process.stdin.flush()
        for line in process.stdout:
            at, _, end, _, is_done, threads = json.loads(line)
            is_new = target.read_bytes() != b"old"
            is_right = end in ("done", "interrupted") and is_new == is_done and threads == 1
            left = [path.name for path in tmp_path.glob("*.partial")]
            interrupts.hold(
                is_right and not left, f"line {at}: {end}, {is_done}, {threads} threads, {is_new}, {left}"
            )
            target.write_bytes(b"old")
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.returncode == 0
