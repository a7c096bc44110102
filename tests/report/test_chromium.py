"""The page in a real Chromium: it renders, writes no error to the console, loads nothing, and its slider moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lorabake import report
from tests.report import example
from tests.report.browser import CHROMIUM, DRIVER, Browser, browser

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH")

CUT = "return getComputedStyle(document.querySelector('.stage')).getPropertyValue('--cut')"
SEEN = "return [...document.querySelectorAll(arguments[0])].filter(each => each.checkVisibility()).length"


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {name: report.write(made(), folder / name)["html"] for name, made in example.EXAMPLES.items()}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", example.EXAMPLES)
def test_it_renders_without_errors(window: Browser, pages: dict[str, Path], name: str, dark: bool) -> None:
    window.console()
    window.open(pages[name], dark=dark)
    assert window.console() == []
    assert window.run("return document.querySelector('h1').getBoundingClientRect().height") > 30
    broken = "return [...document.images].filter(each => !each.naturalWidth && each.src !== 'data:,').length"
    assert window.run(broken) == 0
    loaded = window.run("return performance.getEntriesByType('resource').map(each => each.name)")
    assert all(address.startswith("data:") for address in loaded)
    assert window.run("return typeof window.hacked") == "undefined"
    paper = window.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(paper) < 300) is dark


@pytest.mark.parametrize("name", example.EXAMPLES)
def test_a_narrow_window_needs_no_scrolling_sideways(window: Browser, pages: dict[str, Path], name: str) -> None:
    window.open(pages[name], width=360)
    assert window.run("return document.documentElement.scrollWidth") == 360


def test_the_slider_moves(window: Browser, pages: dict[str, Path]) -> None:
    window.open(pages["true"])
    assert window.run(CUT) == "50%"
    window.press(".stage input", "\ue014" * 3)  # the right arrow
    assert window.run(CUT) == "53%"
    window.run("document.querySelector('.stage').scrollIntoView({block: 'center'})")
    box = window.run(
        "const b = document.querySelector('.stage').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]"
    )
    x, y, width, height = box
    window.drag((x + 0.53 * width, y + height / 2), (x + 0.2 * width, y + height / 2))
    assert 18 <= int(window.run(CUT).rstrip("%")) <= 22
    handle = window.run("return document.querySelector('.handle').getBoundingClientRect().x") - x
    assert handle == pytest.approx(0.2 * width, abs=0.025 * width)
    clip = window.run("return getComputedStyle(document.querySelector('.stage img.left')).clipPath")
    assert "inset(0" in clip
    assert window.console() == []


def test_the_slider_compares_what_is_chosen(window: Browser, pages: dict[str, Path]) -> None:
    window.open(pages["true"])
    choose = """
const choice = document.querySelectorAll('#compare select')[arguments[0]];
choice.value = arguments[1];
choice.dispatchEvent(new Event('change'));
"""
    source = """
const side = document.querySelector(`.stage img.${arguments[0]}`);
const given = document.querySelector(`#prompt-${arguments[1]} img[data-model=${arguments[2]}]`);
return side.src === given.src && side.alt === given.alt && side.naturalWidth > 0;
"""
    assert window.run(source, "left", 0, "runtime")
    assert window.run(source, "right", 0, "baked")
    for place, value in ((0, "2"), (1, "base"), (2, "floor")):
        window.run(choose, place, value)
    assert window.run(source, "left", 2, "base")
    assert window.run(source, "right", 2, "floor")
    said = window.run("return document.querySelector('.stage input').getAttribute('aria-valuetext')")
    assert said == "50 % base, 50 % rounded"


def test_pictures_are_the_ones_that_were_sampled(window: Browser, pages: dict[str, Path]) -> None:
    window.open(pages["different"])
    script = """
const picture = document.querySelector('#prompt-1 img[data-model=baked]');
const canvas = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight).getContext('2d');
canvas.drawImage(picture, 0, 0);
return [...canvas.getImageData(0, 0, picture.naturalWidth, picture.naturalHeight).data].filter((_, at) => at % 4 < 3);
"""
    wanted = example.pictures(60).pictures[1].pictures["baked"]
    assert window.run(script) == wanted.flatten().tolist()


def test_checks_are_folded_and_filtered(window: Browser, pages: dict[str, Path]) -> None:
    window.open(pages["many"])
    rows = {status: window.run(SEEN, f"#checks tr.{status}") for status in ("pass", "skip", "warn", "fail")}
    assert rows == {"pass": 0, "skip": 13, "warn": 16, "fail": 24 - 1}
    window.press("#show-warn", " ")
    assert window.run(SEEN, "#checks tr.warn") == 0
    assert window.run(SEEN, "#checks tr.fail") == 23
    assert window.run(SEEN, "#checks .check") == 9
    window.press("#show-pass", " ")
    assert window.run(SEEN, "#checks .check") == 2


def test_it_prints_in_light_colours_without_controls(window: Browser, pages: dict[str, Path]) -> None:
    window.open(pages["true"], dark=True)
    window.developer("Emulation.setEmulatedMedia", media="print")
    assert window.run(SEEN, "#compare, .filter input") == 0
    assert window.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    window.developer("Emulation.setEmulatedMedia", media="")
    assert window.pdf().startswith(b"%PDF")
