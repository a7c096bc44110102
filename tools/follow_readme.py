"""Do what a page says, from `git clone` to the last example, in an account with nothing set up.

    python tools/follow_readme.py [--whole] [PAGE]         PAGE is README.md unless given

The account is a folder: a home of its own, no caches, no virtual environment, only PATH, proxies and pip's variables
from here. Every command of the page's sh and console blocks runs there, in the page's order, in one shell. The clone
is of this repository as it was last committed. `make test` runs a few tests, or all of them with --whole. It stops at
what fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = re.compile(r"(LANG|LC_\w+|TERM|TMPDIR|PIP_\w+|SSL_\w+|REQUESTS_CA_BUNDLE|(https?|no)_proxy)", re.IGNORECASE)
SOME_TESTS = "tests/test_recipes.py"
CLONE = re.compile(r"git clone https://\S+/(\w+)(?=\s|$)")


def main() -> int:
    """Follow a page, and say how long each command took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("page", nargs="?", type=Path, default=ROOT / "README.md")
    parser.add_argument("--whole", action="store_true", help="run all tests where the page says `make test`")
    options = parser.parse_args()
    calls = [*commands(options.page.read_text(encoding="utf-8"))]
    if not any(CLONE.match(call) for call in calls):
        sys.exit(f"{options.page}: clones nothing, so a new user cannot follow it")
    with tempfile.TemporaryDirectory(prefix="new-user-") as home:
        began = time.monotonic()
        environment = account(Path(home), is_whole=options.whole)
        code = subprocess.run(["bash", "-c", script(calls)], cwd=home, env=environment, check=False).returncode
        # pip, compilers and libraries keep their caches in hidden folders.
        left = sorted(path.name for path in Path(home).iterdir() if not path.name.startswith("."))
        minutes = (time.monotonic() - began) / 60
    if code:
        print(f"{options.page.name}: the command above failed, with exit code {code}", file=sys.stderr)
        return 1
    if len(left) != 1:
        print(f"{options.page.name}: it leaves more than the clone in the home: {left}", file=sys.stderr)
        return 1
    print(f"\n{options.page.name}: {len(calls)} commands, all of them right, in {minutes:.1f} minutes")
    return 0


def commands(page: str) -> Iterator[str]:
    """Yield the commands of a page in its order; those that ask for the machine's password are for the reader."""
    for language, block in re.findall(r"^```(sh|console)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        block = block.replace("\\\n", " ")
        lines = block.splitlines()
        if language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        yield from (line for line in lines if line.strip() and not line.startswith(("#", "sudo ")))


def account(home: Path, *, is_whole: bool) -> dict[str, str]:
    """Return the environment of a new user, with this interpreter as python3."""
    environment = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    own = str(Path(sys.prefix) / "bin") if sys.prefix != sys.base_prefix else None
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if folder != own]
    path = os.pathsep.join([str(Path(sys.base_prefix) / "bin"), *folders])
    tests = {} if is_whole else {"ARGS": SOME_TESTS}  # make reads it where the page says no more than `make test`
    return environment | {"HOME": str(home), "PATH": path} | tests


def script(calls: list[str]) -> str:
    """Write one shell script that shows each command and how long it takes, and stops at the first that fails."""
    lines = ["set -euo pipefail", "SECONDS=0"]
    for call in calls:
        run = CLONE.sub(lambda match: f"git clone --quiet {shlex.quote(ROOT.as_uri())} {match[1]}", call)
        lines += [f"printf '\\n[%d s] $ %s\\n' \"$SECONDS\" {shlex.quote(call)}", run]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
