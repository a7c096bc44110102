"""Give the package its long description: README.md, with links that work on the page of a package index."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HOME = PROJECT["urls"]["Homepage"]
RAW = HOME.replace("https://github.com/", "https://raw.githubusercontent.com/")
TAG = f"v{PROJECT['version']}"
LINK = re.compile(r"(!?)(\[(?:[^\[\]]|\[[^\[\]]*\])*\])\((?!https?:|#|mailto:)([^()\s]+)\)")


def absolute(text: str) -> str:
    """Let links to files of the repository lead to the tag of this version, and images to their bytes."""

    def whole(match: re.Match[str]) -> str:
        mark, words, path = match.groups()
        kind = "tree" if (ROOT / path.partition("#")[0]).is_dir() else "blob"
        start = f"{RAW}/{TAG}" if mark else f"{HOME}/{kind}/{TAG}"
        return f"{mark}{words}({start}/{path})"

    return LINK.sub(whole, text).replace(f"{RAW}/main/", f"{RAW}/{TAG}/")


setup(
    long_description=absolute((ROOT / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
