"""`make readme` runs every command of a page in an account of its own, and stops at the first that fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = """
```sh
sudo apt install git      # for the reader
git clone https://github.com/lorabake/lorabake
cd lorabake
test -f README.md && echo "home has $(ls -A "$HOME")"
test -z "${PYTHONPATH:-}${VIRTUAL_ENV:-}"
```

```yaml
version: 1
```

```console
$ test LAST
what it prints is no command
```

```sh
echo this is reached
```
"""

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists() or not shutil.which("git"), reason="needs a clone and git: apt install git"
)


def followed(page: Path, text: str) -> subprocess.CompletedProcess[str]:
    page.write_text(text)
    command = [sys.executable, str(ROOT / "tools" / "follow_readme.py"), str(page)]
    environment = {**os.environ, "PYTHONPATH": "here", "VIRTUAL_ENV": "here"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("last", ["-d lorabake", "-f missing"])
def test_a_page_is_followed_to_what_fails(tmp_path: Path, last: str) -> None:
    done = followed(tmp_path / "page.md", PAGE.replace("LAST", last))
    assert "home has lorabake\n" in done.stdout, done.stderr
    is_right = last == "-d lorabake"
    assert ("\nthis is reached\n" in done.stdout) == is_right
    assert done.returncode == (0 if is_right else 1)
    assert ("page.md: 6 commands, all of them right" in done.stdout) == is_right
    assert ("page.md: the command above failed" in done.stderr) != is_right


def test_a_page_without_a_clone_is_refused(tmp_path: Path) -> None:
    done = followed(tmp_path / "page.md", "```sh\nmake demo\n```\n")
    assert done.returncode == 1
    assert "clones nothing" in done.stderr
