"""The page in a real Chromium: it renders, writes no error to the console, loads nothing, and its slider moves.

It fits a telephone, is printed whole, and axe-core finds nothing in it that keeps people out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorabake import report
from tests.report import example
from tests.report.browser import Window, browser, lacking

MISSING = lacking()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "nothing is missing")

CUT = "getComputedStyle(document.querySelector('.stage')).getPropertyValue('--cut')"


@pytest.fixture(scope="module")
def window() -> Iterator[Window]:
    with browser() as started:
        yield Window(started)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {name: report.write(made(), folder / name)["html"] for name, made in example.EXAMPLES.items()}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", example.EXAMPLES)
def test_it_renders_without_errors(window: Window, pages: dict[str, Path], name: str, dark: bool) -> None:
    window.open(pages[name], dark=dark)
    assert window.faults == []
    assert window.run("document.querySelector('h1').getBoundingClientRect().height") > 30
    broken = "[...document.images].filter(each => !each.naturalWidth && each.src !== 'data:,').length"
    assert window.run(broken) == 0
    loaded = window.run("performance.getEntriesByType('resource').map(each => each.name)")
    assert all(address.startswith("data:") for address in loaded)
    assert window.run("typeof window.hacked") == "undefined"
    paper = window.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(paper) < 300) is dark


# -- for everybody -------------------------------------------------------------------------------------


def violations(window: Window) -> list[str]:
    """Return what axe-core finds in the page as it is shown now."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="install axe-core: pip install -e '.[test]'"
    )
    found: list[dict[str, Any]] = axe.Axe().run(window.page).response["violations"]
    return [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)], ids=["wide and light", "narrow and dark"])
@pytest.mark.parametrize("name", example.EXAMPLES)
def test_axe_finds_no_violation(window: Window, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    window.open(pages[name], width=width, dark=dark)
    assert violations(window) == []


def test_axe_finds_a_violation_where_there_is_one(window: Window, pages: dict[str, Path]) -> None:
    window.open(pages["true"])
    window.run("document.querySelector('#prompt-0 img').removeAttribute('alt')")
    assert [each.partition(":")[0] for each in violations(window)] == ["image-alt"]


@pytest.mark.parametrize("name", example.EXAMPLES)
def test_a_narrow_window_needs_no_scrolling_sideways(window: Window, pages: dict[str, Path], name: str) -> None:
    window.open(pages[name], width=360)
    window.run("for (const each of document.querySelectorAll('details')) each.open = true")
    assert window.run("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("name", ["true", "many", "hostile"])
def test_no_cell_of_a_table_runs_into_the_next(window: Window, pages: dict[str, Path], name: str, width: int) -> None:
    window.open(pages[name], width=width)
    window.run("for (const each of document.querySelectorAll('details')) each.open = true")
    cells = """
[...document.querySelectorAll('table:not(.numbers) :is(td, tbody th)')].filter(each => each.checkVisibility())
    .filter(each => each.getBoundingClientRect().right > innerWidth || each.scrollWidth > each.clientWidth + 1)
    .map(each => each.outerHTML)
"""
    assert window.run(cells) == []


def test_in_a_narrow_window_each_figure_has_its_name_beside_it(window: Window, pages: dict[str, Path]) -> None:
    window.open(pages["true"], width=360)
    cells = "[...document.querySelectorAll('.numbers tbody tr:first-child td')]"
    named = window.run(f"{cells}.map(each => getComputedStyle(each, '::before').content)")
    assert named[:3] == ['"latents, floor"', '"latents, baked"', '"latents, ceiling"']
    assert window.seen("thead") == 0


def test_the_keyboard_reaches_what_scrolls(window: Window, pages: dict[str, Path]) -> None:
    window.open(pages["true"], width=360)
    window.page.wait_for_selector("#effects .wide[tabindex='0']")
    window.page.focus("#effects .wide")
    window.page.keyboard.press("ArrowRight")
    window.until("document.activeElement.scrollLeft > 0")
    window.page.set_viewport_size({"width": 1200, "height": 900})
    window.page.wait_for_selector("#effects .wide:not([tabindex])")


# -- pictures and the slider ---------------------------------------------------------------------------


def test_the_slider_moves(window: Window, pages: dict[str, Path]) -> None:
    window.open(pages["true"])
    assert window.run(CUT) == "50%"
    for _ in range(3):
        window.page.press(".stage input", "ArrowRight")
    assert window.run(CUT) == "53%"
    window.run("document.querySelector('.stage').scrollIntoView({block: 'center'})")
    box = window.page.locator(".stage").bounding_box()
    assert box
    middle = box["y"] + box["height"] / 2
    window.page.mouse.move(box["x"] + 0.53 * box["width"], middle)
    window.page.mouse.down()
    window.page.mouse.move(box["x"] + 0.2 * box["width"], middle, steps=5)
    window.page.mouse.up()
    assert 18 <= int(window.run(CUT).rstrip("%")) <= 22
    handle = window.run("document.querySelector('.handle').getBoundingClientRect().x") - box["x"]
    assert handle == pytest.approx(0.2 * box["width"], abs=0.025 * box["width"])
    clip = window.run("getComputedStyle(document.querySelector('.stage img.left')).clipPath")
    assert "inset(0" in clip
    assert window.faults == []


def test_the_slider_compares_what_is_chosen(window: Window, pages: dict[str, Path]) -> None:
    window.open(pages["true"])
    source = """
([place, prompt, model]) => {
  const side = document.querySelector(`.stage img.${place}`);
  const given = document.querySelector(`#prompt-${prompt} img[data-model=${model}]`);
  return side.src === given.src && side.alt === given.alt && side.naturalWidth > 0;
}
"""
    assert window.run(source, ["left", 0, "base"])
    assert window.run(source, ["right", 0, "baked"])
    for place, value in enumerate(("2", "runtime", "floor")):
        window.page.locator("#compare select").nth(place).select_option(value)
    assert window.run(source, ["left", 2, "runtime"])
    assert window.run(source, ["right", 2, "floor"])
    said = window.page.get_attribute(".stage input", "aria-valuetext")
    assert said == "50 % run time, 50 % rounded"


def test_pictures_are_the_ones_that_were_sampled(window: Window, pages: dict[str, Path]) -> None:
    window.open(pages["different"])
    script = """
() => {
  const picture = document.querySelector('#prompt-1 img[data-model=baked]');
  const canvas = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight).getContext('2d');
  canvas.drawImage(picture, 0, 0);
  const data = canvas.getImageData(0, 0, picture.naturalWidth, picture.naturalHeight).data;
  return [...data].filter((_, at) => at % 4 < 3);
}
"""
    wanted = example.pictures(60).pictures[1].pictures["baked"]
    assert window.run(script) == wanted.flatten().tolist()


def test_the_index_of_many_prompts_leads_to_each(window: Window, pages: dict[str, Path]) -> None:
    window.open(pages["prompts"])
    for name, count in (("Prompts of the pictures", 8), ("Prompts of the texts", 8)):
        links = window.page.get_by_role("navigation", name=name).get_by_role("link")
        assert links.count() == count
        links.last.click()
        top = window.run("document.querySelector(location.hash + ' h3').getBoundingClientRect().top")
        assert 0 <= top < 900
        assert window.run("document.querySelector(location.hash + ' h3').innerText").startswith(
            links.last.inner_text()
        )
    window.open(pages["true"])
    assert window.seen("nav") == 0


# -- checks --------------------------------------------------------------------------------------------


def test_checks_are_folded_and_filtered(window: Window, pages: dict[str, Path]) -> None:
    window.open(pages["many"])
    rows = {status: window.seen(f"#checks tr.{status}") for status in ("pass", "skip", "warn", "fail")}
    assert rows == {"pass": 0, "skip": 13, "warn": 16, "fail": 24 - 1}
    window.page.press("#show-warn", " ")
    assert window.seen("#checks tr.warn") == 0
    assert window.seen("#checks tr.fail") == 23
    assert window.seen("#checks .check") == 9
    window.page.press("#show-pass", " ")
    assert window.seen("#checks .check") == 2


# -- print ---------------------------------------------------------------------------------------------


def test_it_prints_in_light_colours_without_controls(window: Window, pages: dict[str, Path]) -> None:
    window.open(pages["true"], dark=True)
    window.page.emulate_media(media="print")
    assert window.seen("#compare, .filter input") == 0
    assert window.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert window.page.pdf(format="A4", print_background=True).startswith(b"%PDF")


def test_it_prints_every_check_also_what_is_folded_or_filtered_out(window: Window, pages: dict[str, Path]) -> None:
    window.open(pages["many"])
    window.page.press("#show-fail", " ")
    assert window.seen("#checks tbody tr") < 100
    window.page.emulate_media(media="print")
    findings = len(example.many().findings)
    assert window.seen("#checks tbody tr") == findings
    assert (
        window.seen("#effects tbody tr") == window.run("document.querySelectorAll('#effects tbody tr').length") > 20
    )
    heights = window.run(
        "[...document.querySelectorAll('#checks tbody tr')].map(e => e.getBoundingClientRect().height)"
    )
    assert min(heights) > 10


def test_a_printed_page_keeps_headings_with_what_they_are_of(window: Window, pages: dict[str, Path]) -> None:
    window.open(pages["many"])
    window.page.emulate_media(media="print")
    style = "selector => [...document.querySelectorAll(selector)].map(e => getComputedStyle(e)[{0!r}])"
    for selector in ("h2", "h3", "summary", ".lead", "thead"):
        assert {*window.run(style.format("breakAfter"), selector)} <= {"avoid"}
    assert {*window.run(style.format("breakInside"), ".kept, .prompt, .lead, .check, svg.plot")} == {"avoid"}
    assert window.run(
        "[...document.querySelectorAll('#effects svg.plot')].every(e => e.closest('.kept').querySelector('h3'))"
    )


@pytest.mark.parametrize("name", ["many", "prompts"])
def test_what_is_printed_is_no_wider_than_the_paper(window: Window, pages: dict[str, Path], name: str) -> None:
    window.open(pages[name], width=688)  # A4 without its margins
    window.page.emulate_media(media="print")
    every = "[...document.querySelectorAll('body *')]"
    wide = window.run(f"{every}.filter(each => each.getBoundingClientRect().right > 690).map(each => each.outerHTML)")
    assert wide == []
