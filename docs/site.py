"""Make the site of the pages: order them by reader, begin with the README, and send links to files to the repository.

mkdocs calls these functions while `make site` runs. A page needs no entry here: one that is in no group stands last.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

GROUPS = {
    "Use it": (
        *("getting-started", "recipes", "commands", "python", "comfyui", "a1111", "llm", "hub", "lock", "ci"),
        *("scale", "coming-from", "faq"),
        *("what-it-bakes", "families", "kinds", "formats", "coverage", "storage", "layouts"),
        *("metadata", "devices", "speed"),
    ),
    "Trust it": ("promises", "verification", "provenance", "reliability"),
    "Reference": ("api", "json"),
    "Change it": ("architecture", "extending"),
}
"""Pages by reader, in the order of reading."""

LINK = re.compile(r"(\]\()((?!https?:|#|mailto:)[^)\s]+)(\))")

RAW = "https://raw.githubusercontent.com/lorabake/lorabake/main/"
"""Where the README finds its pictures, because package indexes show it, too."""


def slug(heading: str, separator: str) -> str:
    """Give a heading the anchor that GitHub gives it, because the pages are read there, too."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def navigation(names: set[str]) -> list[dict[str, Any]]:
    """Put the pages with these names into groups; those of no group stand last."""
    groups = {title: [name for name in pages if name in names] for title, pages in GROUPS.items()}
    rest = sorted(names - {name for pages in groups.values() for name in pages} - {"index"})
    groups["More"] = rest
    filled = ({title: [f"{name}.md" for name in pages]} for title, pages in groups.items() if pages)
    return [{"lorabake": "index.md"}, *filled]


def led(markdown: str, folder: str, pages: set[str], repository: str) -> str:
    """Rewrite a page's links: to another page of the site, or else to the file in the repository.

    `folder` is where the page lies in the repository: "docs", or "" for the README.
    """

    def target(match: re.Match[str]) -> str:
        path, hash_sign, anchor = match[2].partition("#")
        place = posixpath.normpath(posixpath.join(folder, path))
        if place == "README.md":
            link = "index.md"
        elif place.startswith("docs/") and place.removeprefix("docs/") in pages:
            link = place.removeprefix("docs/")
        else:
            kind = "tree" if (ROOT / place).is_dir() else "blob"
            link = f"{repository.rstrip('/')}/{kind}/main/{place}"
        return f"{match[1]}{link}{hash_sign}{anchor}{match[3]}"

    return LINK.sub(target, markdown.replace(RAW, ""))


def on_config(config: Any) -> Any:
    """Order the pages, and give headings GitHub's anchors."""
    names = {path.stem for path in Path(config["docs_dir"]).glob("*.md")} | {"index"}
    config["nav"] = navigation(names)
    config["mdx_configs"]["toc"]["slugify"] = slug
    return config


def on_files(files: Any, config: Any) -> Any:
    """Let the README be the first page."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite a page's links."""
    folder = "" if page.file.src_uri == "index.md" else "docs"
    pages = {file.src_uri for file in files}
    return led(markdown, folder, pages, config["repo_url"])
