"""The report on several outputs: its axes, its page, its sheet of pictures, and its other forms."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from lorabake import report
from lorabake.report.axes import arranged, groups, label
from lorabake.verification.findings import Finding, Status
from lorabake.verification.many import VerifiedOutput
from tests.documents import check
from tests.report import example_batch as made
from tests.report.browser import Window, browser, lacking
from tests.report.test_chromium import violations
from tests.report.test_report import Page

MISSING = lacking()
in_chromium = pytest.mark.skipif(bool(MISSING), reason=MISSING or "nothing is missing")


def outputs(**axes: list[str]) -> list[VerifiedOutput]:
    return [VerifiedOutput(recipe.name, recipe) for recipe in made.recipes(axes)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("overviews")
    return {name: report.write_all(batch(), folder / name)["html"] for name, batch in made.BATCHES.items()}


# -- axes -------------------------------------------------------------------------------------------------


def test_numbers_go_across_and_names_down() -> None:
    for axes in (
        {"strength": ["0.2", "1"], "style": ["a", "b", "c"]},
        {"style": ["a", "b", "c"], "strength": ["0.2", "1"]},
    ):
        (grid,) = arranged(outputs(**axes))
        assert (grid.across, grid.down, grid.section) == ("strength", "style", "")
        assert (grid.columns, grid.rows) == (("0.2", "1"), ("a", "b", "c"))
        assert [output.choices for output in grid.at("b", "1")] == [{"strength": "1", "style": "b"}]


def test_of_two_axes_of_names_the_longer_goes_across() -> None:
    (grid,) = arranged(outputs(style=["a", "b"], character=["x", "y", "z"]))
    assert (grid.across, grid.down) == ("character", "style")


def test_axes_beyond_the_longest_two_are_sections() -> None:
    grids = arranged(outputs(dtype=["F16", "BF16"], strength=["1", "2", "3"], style=["a", "b", "c", "d"], seed=["7"]))
    assert [grid.section for grid in grids] == ["dtype F16", "dtype BF16"]
    assert {(grid.across, grid.down) for grid in grids} == {("strength", "style")}
    assert [len(grid.outputs) for grid in grids] == [12, 12]
    four = arranged(outputs(a=["x", "y"], b=["1", "2"], c=["p", "q"], d=["m", "n"]))
    assert [grid.section for grid in four] == ["c p, d m", "c p, d n", "c q, d m", "c q, d n"]


def test_what_the_matrix_leaves_out_is_an_empty_cell() -> None:
    (grid,) = arranged(outputs(strength=["1", "2"], style=["a", "b"])[:3])
    assert grid.at("b", "2") == ()
    assert len(grid.at("a", "2")) == 1


def test_without_two_axes_outputs_follow_one_another() -> None:
    one = outputs(strength=["1", "2"])
    (grid,) = arranged(one)
    assert (grid.across, grid.outputs) == ("", tuple(one))
    assert [label(output, one) for output in one] == ["strength 1", "strength 2"]
    alone = [VerifiedOutput(name, *made.recipes({}, f"{name}.yaml", name)) for name in ("ink", "oil")]
    assert [label(output, alone) for output in alone] == ["ink", "oil"]


def test_recipes_with_a_matrix_have_grids_of_their_own() -> None:
    told = groups(made.unlike().outputs)
    assert [(group.title, len(group.outputs)) for group in told] == [("", 3), ("one_axis.yaml", 4)]


# -- the forms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", made.BATCHES)
def test_the_page_obeys_its_own_policy_and_links_to_pages_below(name: str, pages: dict[str, Path]) -> None:
    page = Page(pages[name].read_text("utf-8"))
    policy = next(attributes["content"] for tag, attributes in page.elements if "http-equiv" in attributes)
    assert policy is not None
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.inside[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    links = {value for _, attributes in page.elements for key in ("src", "href") if (value := attributes.get(key))}
    assert all(re.match(r"data:|#outputs|outputs/", link) for link in links)
    assert not any("style" in attributes or "onerror" in attributes for _, attributes in page.elements)
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_same_batch_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again = (report.write_all(made.sweep(), tmp_path / side) for side in "ab")
    assert first.keys() == {"html", "json", "junit", "markdown", "grid"}
    assert all(path.read_bytes() == again[form].read_bytes() for form, path in first.items())


def test_a_base_is_shown_once_for_each_prompt(pages: dict[str, Path]) -> None:
    for name, prompts in (("sweep", 1), ("sixty", 2), ("unlike", 1), ("texts", 1), ("weights", 0)):
        assert pages[name].read_text().count("<figcaption>the base, ") == prompts, name


def test_a_warning_of_many_outputs_is_told_once(tmp_path: Path) -> None:
    batch = made.sweep()
    warning = Finding("weights.zero", Status.WARN, "ink.safetensors", "1 module", "0", "changes nothing")
    other = replace(warning, subject="oil.safetensors")
    first, *rest = (replace(each, findings=(*each.findings, warning)) for each in batch.outputs)
    first = replace(first, findings=(*first.findings, other))
    text = report.write_all(replace(batch, outputs=(first, *rest)), tmp_path)["html"].read_text()
    told = text[text.index("<h2>Warnings") :]
    assert [*re.findall(r"<b>(.*?)</b>.*<small>(.*?)</small>", told)] == [
        ("ink.safetensors", f"{len(batch.outputs)} outputs"),
        ("oil.safetensors", "1 output"),
    ]


def test_every_form_tells_each_verdict(pages: dict[str, Path]) -> None:
    folder = pages["sixty"].parent
    record = check((folder / "report.json").read_text())
    assert record["counts"] == [
        {"verdict": "verified", "count": 56},
        {"verdict": "not_finished", "count": 1},
        {"verdict": "failed", "count": 1},
        {"verdict": "mismatch", "count": 2},
    ]
    told = (folder / "summary.md").read_text()
    assert told.startswith("## ❌ Mismatch: 56 of 60 outputs are what the recipe says\n")
    rows = [line for line in told.splitlines() if re.match(r"\| \S+ (verified|mismatch|failed|not finished) ", line)]
    assert [re.split(r" \| | ", row)[2] for row in rows[:4]] == ["mismatch", "mismatch", "failed", "not"]
    assert "10 more are in the report." in told
    assert json.loads((pages["weights"].parent / "report.json").read_text())["verdict"] == "mismatch"


def test_one_verdict_is_not_told_by_colour_alone(pages: dict[str, Path]) -> None:
    marks = set(
        re.findall(r'<span class="mark (\w+)"><i aria-hidden="true">(.)</i> ([a-z ]+)<', pages["sixty"].read_text())
    )
    assert marks == {
        ("verified", "✓", "verified"),
        ("mismatch", "✗", "mismatch"),
        ("failed", "!", "failed"),
        ("not_finished", "!", "not finished"),
    }


def test_texts_that_try_to_be_more_stay_texts(pages: dict[str, Path]) -> None:
    page = Page(pages["hostile"].read_text("utf-8"))
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert page.words.count("<script>window.hacked=1</script>") > 10
    assert "<script" not in (pages["hostile"].parent / "summary.md").read_text()
    check((pages["hostile"].parent / "report.json").read_text())


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def test_the_sheet_shows_the_pictures_as_they_are(pages: dict[str, Path]) -> None:
    batch = made.sweep()
    sheet = opened(pages["sweep"].parent / "grid.png")
    picture = batch.outputs[0].samples[0].picture
    assert picture is not None
    small = Image.open(BytesIO(picture.data)).convert("RGB")
    large = small.resize((128, 128), Image.Resampling.NEAREST).tobytes()
    found = [x for x in range(sheet.width - 127) if sheet.crop((x, 48, x + 128, 176)).tobytes() == large]
    assert len(found) == 1
    assert sheet.width < 900
    assert opened(pages["sixty"].parent / "grid.png").width < 1300


def test_a_batch_without_pictures_has_no_sheet(tmp_path: Path) -> None:
    assert "grid" not in report.write_all(made.weights(), tmp_path / "one")
    assert "grid" not in report.write_all(replace(made.sweep(), outputs=()), tmp_path / "none")


# -- in Chromium ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def window() -> Iterator[Window]:
    with browser() as started:
        yield Window(started)


@in_chromium
@pytest.mark.parametrize("name", made.BATCHES)
def test_it_renders_dark_and_narrow_without_errors(window: Window, pages: dict[str, Path], name: str) -> None:
    for width, dark in ((1200, False), (360, True)):
        window.open(pages[name], width=width, dark=dark)
        assert window.faults == []
        assert window.run("document.documentElement.scrollWidth") == width
        assert window.run("[...document.images].filter(each => !each.naturalWidth).length") == 0
        assert window.run("typeof window.hacked") == "undefined"
        loaded = window.run("performance.getEntriesByType('resource').map(each => each.name)")
        assert all(address.startswith("data:") for address in loaded)


@in_chromium
@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [
        ("sweep", 1200, False),
        ("weights", 1200, True),
        ("unlike", 360, True),
        ("texts", 360, False),
        ("sixty", 360, True),
    ],
)
def test_axe_finds_no_violation(window: Window, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    window.open(pages[name], width=width, dark=dark)
    assert violations(window) == []


@in_chromium
@pytest.mark.parametrize("width", [360, 1200])
def test_the_heads_of_columns_and_rows_stay_in_sight(window: Window, pages: dict[str, Path], width: int) -> None:
    window.open(pages["sixty"], width=width, height=500)
    window.run("document.querySelector('.grid').scrollTo(200, 300)")
    place = "(() => {{ const a = document.querySelector('{}').getBoundingClientRect(), "
    place += "b = document.querySelector('.grid').getBoundingClientRect(); return a.{} - b.{}; }})()"
    assert abs(window.run(place.format(".matrix thead th", "top", "top"))) < 1
    if width == 360:
        assert abs(window.run(place.format(".matrix tbody th", "left", "left"))) < 1
    window.page.wait_for_selector(".grid[tabindex='0']")
    window.run("document.querySelector('#outputs tbody tr:nth-child(30)').scrollIntoView()")
    if width == 1200:
        assert abs(window.run("document.querySelector('.outputs thead th').getBoundingClientRect().top")) < 1


@in_chromium
def test_small_pictures_are_enlarged_by_a_whole_factor_with_square_pixels(
    window: Window, pages: dict[str, Path]
) -> None:
    window.open(pages["sweep"])
    script = "[...document.images].map(e => [e.width / e.naturalWidth, getComputedStyle(e).imageRendering])"
    assert {(factor, how) for factor, how in window.run(script)} == {(2, "pixelated")}


@in_chromium
def test_a_cell_leads_to_the_page_of_its_output(window: Window, pages: dict[str, Path]) -> None:
    folder = pages["sweep"].parent / "outputs" / "0.8-both"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("<title>here</title>")
    window.open(pages["sweep"])
    cell = window.page.locator(".matrix tbody tr:nth-child(2) td:nth-child(5) a")
    assert cell.inner_text().split() == ["✓", "verified"]
    cell.click()
    assert window.page.title() == "here"


@in_chromium
def test_it_prints_all_of_a_grid(window: Window, pages: dict[str, Path]) -> None:
    window.open(pages["sixty"], width=700, dark=True)
    window.page.emulate_media(media="print")
    assert window.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    edges = "[...document.images].map(e => e.getBoundingClientRect().right)"
    assert max(window.run(edges)) <= 700
    assert window.run("getComputedStyle(document.querySelector('.grid')).maxHeight") == "none"
