"""Every form of the report says the same, holds whatever text it is given, and is the same each time."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import struct
import sys
import tempfile
import traceback
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from lorabake import report
from lorabake.baking import plan
from lorabake.errors import SurroundingsError
from lorabake.recipe import load_recipe
from lorabake.report import plots
from lorabake.report.markdown import MOST_ROWS
from lorabake.report.pictures import amplified, gain, png
from lorabake.verification.findings import (
    UNCOMPARED,
    Effect,
    Failure,
    Finding,
    Identity,
    Status,
    TensorVerdict,
    Verdict,
    Verification,
)
from tests import builders as b
from tests.documents import check
from tests.report import example


def written(verification: Verification, folder: Path) -> dict[str, str]:
    """Write a report and read its texts."""
    files = report.write(verification, folder)
    assert all(path.is_file() and path.parent == folder for path in files.values())
    return {form: path.read_text("utf-8") for form, path in files.items() if form != "grid"}


class Page(HTMLParser):
    """Collect a page's elements, and its text outside of style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, str] = {}
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("style", "script"):
            self.inside.setdefault(self.elements[-1][0], data)
        self.words += data


# -- all forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", example.EXAMPLES)
def test_forms_are_written_and_the_same_again(name: str, tmp_path: Path) -> None:
    first, again = (report.write(example.EXAMPLES[name](), tmp_path / side / "deep") for side in ("a", "b"))
    assert {form: path.read_bytes() for form, path in first.items()} == {
        form: path.read_bytes() for form, path in again.items()
    }
    assert sorted(path.name for path in first["html"].parent.iterdir()) == sorted(
        path.name for path in first.values()
    )
    assert ("grid" in first) is (name in ("true", "different", "prompts", "hostile"))


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        (example.PASSED, Verdict.VERIFIED),
        ((*example.PASSED, example.FAINT), Verdict.VERIFIED),
        ((*example.PASSED, example.WRONG), Verdict.MISMATCH),
        ((), Verdict.NOT_CHECKED),
        ((Finding("samples.skipped", Status.SKIP, "x"),), Verdict.NOT_CHECKED),
    ],
)
def test_all_forms_have_one_verdict(findings: tuple[Finding, ...], verdict: Verdict, tmp_path: Path) -> None:
    verification = replace(example.true(), findings=findings)
    texts = written(verification, tmp_path)
    record = json.loads(texts["json"])
    assert (record["verdict"], record["exit_code"]) == (verdict.value, verification.exit_code)
    assert f"<strong>{verdict.word}</strong>" in texts["html"]
    assert f"<title>{verdict.word}: " in texts["html"]
    assert f" {verdict.word}: " in texts["markdown"].splitlines()[0]
    failures = int(ElementTree.fromstring(texts["junit"]).get("failures", ""))
    assert (failures > 0) is (verdict is Verdict.MISMATCH)


def test_a_stage_that_was_not_run_is_said_so(tmp_path: Path) -> None:
    texts = written(example.true(), tmp_path)
    assert re.search(r"samples</dt>\s*<dd>not run", texts["html"])
    assert "| samples | not run | – |" in texts["markdown"]
    assert [suite.get("name") for suite in ElementTree.fromstring(texts["junit"])] == ["structure", "weights"]


def test_a_verdict_on_headers_alone_says_that_no_weights_were_compared(tmp_path: Path) -> None:
    headers = tuple(finding for finding in example.PASSED if finding.stage == "structure")
    assert 0 < len(headers) < len(example.PASSED)
    for findings, is_partial in ((headers, True), (example.PASSED, False), ((*headers, example.WRONG), False)):
        texts = written(replace(example.true(), findings=findings), tmp_path)
        assert (UNCOMPARED in texts["html"]) is is_partial
        assert (UNCOMPARED in texts["markdown"]) is is_partial


def test_a_folder_that_takes_no_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(SurroundingsError, match="taken: cannot write the report: "):
        report.write(example.broken(), tmp_path / "taken")


def test_texts_that_try_to_be_more_stay_texts(tmp_path: Path) -> None:
    texts = written(example.hostile(), tmp_path)
    page = Page(texts["html"])
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == tags.count("style") == 1
    assert page.words.count("<script>window.hacked=1</script>") > 10
    assert {attributes["src"][:15] for tag, attributes in page.elements if tag == "img" and attributes["src"]} == {
        "data:image/png;",
        "data:,",
    }
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)

    assert "<" not in re.sub(r"&lt;", "", texts["markdown"])
    rows = [line for line in texts["markdown"].splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {3, 4, 5, 7}

    assert "<script>" in ElementTree.fromstring(texts["junit"]).findall(".//failure")[0].get("message", "")
    assert json.loads(texts["json"])["findings"][-2]["message"].endswith("\0\x1b\ud800 (measured 0.8, limit 0.6).")


# -- what verified what, and nothing of this machine ----------------------------------------------------


def test_all_forms_for_people_begin_with_the_environment(tmp_path: Path) -> None:
    verification = example.true(example.pictures())
    texts = written(verification, tmp_path)
    words = " ".join(Page(texts["html"]).words.split())
    parts = ("lorabake verify recipe.yaml", "torch 2.13.0+cpu", "2026-11-29", "Linux x86_64", "fedcba9876543210" * 4)
    places = [words.index(part, words.index("Environment")) for part in parts]
    assert max(places) < words.index("Pictures The same noise")
    told = texts["markdown"].split("| stage |")[0].replace("\\", "")
    assert all(part in told for part in parts)
    digests = json.loads(texts["json"])["environment"]["output"]["digests"]
    assert digests == [{"path": "demo.safetensors", "sha256": "fedcba9876543210" * 4}]


def test_without_a_date_or_an_environment_none_is_shown(tmp_path: Path) -> None:
    undated = replace(example.true(), environment=replace(example.ENVIRONMENT, date="", command=""))
    assert not re.search(r"<dt>(date|command)</dt>", written(undated, tmp_path)["html"])
    texts = written(example.broken(), tmp_path)
    assert "Environment" not in texts["html"] + texts["markdown"]
    assert json.loads(texts["json"])["environment"] is None


def test_digests_of_headers_alone_are_said_to_be_that(tmp_path: Path) -> None:
    base = Identity("base", {"a.safetensors": "1" * 64, "b.safetensors": "2" * 64}, is_whole=False)
    texts = written(replace(example.true(), environment=replace(example.ENVIRONMENT, base=base)), tmp_path)
    assert "SHA-256 of the header alone" in texts["html"]
    assert re.search(r"b\.safetensors <code>2{64}</code>", texts["html"])


def test_no_form_holds_an_absolute_path_also_where_the_recipe_and_the_findings_do(tmp_path: Path) -> None:
    home, models = tmp_path / "home of a user", tmp_path / "models"
    models.mkdir()
    home.mkdir()
    b.save(models / "base.safetensors", b.sd1())
    b.sd1_lora(models / "ink.safetensors", seed=1, rank=2)
    text = f"version: 1\nbase: {models / 'base.safetensors'}\nloras: [{models / 'ink.safetensors'}]\n"
    text += "output: {path: ../out/baked.safetensors}\n"
    (home / "recipe.yaml").write_text(text)
    planned = plan(load_recipe(home / "recipe.yaml"))
    lora = planned.ledgers[0].lora
    here = [
        f"{models}/ink.safetensors: is gone",
        f"{home}/notes/x.txt, {tmp_path}/out/baked.safetensors",
        f"'{home}'",
    ]
    here += [f"{Path.cwd()}/a.txt and {Path.home()}/.cache/hub", f"({tempfile.gettempdir()}/lorabake-x/y.bin)"]
    found = tuple(Finding("weights.lora", Status.FAIL, lora, models.as_posix(), note=note) for note in here)
    try:
        raise ValueError(str(models / "base.safetensors"))
    except ValueError:
        failure = Failure("weights", 4, traceback.format_exc())
    command = f"lorabake verify '{home}/recipe.yaml' --report {tmp_path}/report"
    verification = replace(
        example.true(example.pictures()),
        baked=tmp_path / "out" / "baked.safetensors",
        recipe=text,
        plan=planned,
        findings=found,
        effects=(Effect(lora, "unet", "in", 0.2),),
        tensors=(TensorVerdict(lora, "to_q", "to_q.weight", "strength", 2.0),),
        digests={str(models / "base.safetensors"): "0" * 64},
        failures=(failure,),
        environment=replace(example.ENVIRONMENT, command=command),
    )
    texts = written(verification, tmp_path / "report")
    for form, content in texts.items():
        plain = re.sub(r"data:image/png;base64,[\w+/=]+", "", html.unescape(content)).replace("\\", "")
        for folder in (tmp_path, Path.cwd(), Path.home(), Path(sys.prefix), Path(pytest.__file__).parent):
            assert not re.search(rf"(?<![\w/]){re.escape(str(folder))}\b", plain), (form, folder)
        assert not re.search(r"(?<![\w/<.~:])/(?!\w+>)[\w.-]+/[\w.-]+", plain), form
    record = json.loads(texts["json"])
    assert record["baked"] == "../out/baked.safetensors"
    assert [each["message"].removesuffix(" (measured models).") for each in record["findings"]] == [
        "ink.safetensors: is gone",
        "notes/x.txt, ../out/baked.safetensors",
        "'.'",
        "a.txt and ~/.cache/hub",
        "(lorabake-x/y.bin)",
    ]
    assert record["environment"]["command"] == "lorabake verify 'recipe.yaml' --report report"
    assert record["recipe"]["text"].startswith("version: 1\nbase: base.safetensors\nloras: [ink.safetensors]\n")
    assert record["digests"] == [{"path": "base.safetensors", "sha256": "0" * 64}]
    assert 'File "tests/report/test_report.py"' in record["failures"][0]["traceback"]


def test_prompts_and_addresses_that_look_like_paths_stay(tmp_path: Path) -> None:
    said = "and/or /imagine prompt: https://example.org/a/b.png, 1/2 of m/s."
    found = (*example.PASSED, Finding("weights.lora", Status.WARN, "x", note=said))
    texts = written(replace(example.true(), findings=found), tmp_path)
    assert json.loads(texts["json"])["findings"][-1]["message"] == said


# -- the page ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", example.EXAMPLES)
def test_the_page_is_one_file_and_obeys_its_own_policy(name: str, tmp_path: Path) -> None:
    page = Page(written(example.EXAMPLES[name](), tmp_path)["html"])
    policy = next(attributes["content"] for tag, attributes in page.elements if "http-equiv" in attributes)
    assert policy is not None
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.inside[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    links = {value for _, attributes in page.elements for key in ("src", "href") if (value := attributes.get(key))}
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not any("style" in attributes for _, attributes in page.elements)
    assert "url(" not in page.inside["style"]
    assert all(
        attributes.get("alt") for tag, attributes in page.elements if tag == "img" and attributes["src"] != "data:,"
    )
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_sections_without_content_are_left_out(tmp_path: Path) -> None:
    def sections(verification: Verification) -> list[str | None]:
        page = Page(written(verification, tmp_path)["html"])
        return [attributes["id"] for tag, attributes in page.elements if tag == "section" and "id" in attributes]

    assert sections(example.broken()) == ["checks"]
    assert sections(example.true()) == ["environment", "effects", "ledger", "checks", "recipe", "file", "digests"]
    assert sections(example.true(example.pictures()))[1:5] == ["pictures", "sweep", "settings", "effects"]
    assert sections(example.true(example.texts()))[1:4] == ["texts", "settings", "effects"]


def test_what_failed_comes_first_and_what_passed_is_folded(tmp_path: Path) -> None:
    words = " ".join(Page(written(example.different(), tmp_path)["html"]).words.split())
    said = "is applied at another strength in 128 of 128 unet modules (measured 0.8, limit 0.6)."
    assert words.index(said) < words.index("Pictures The same noise")
    assert "strength ×6" in words
    html = (tmp_path / "index.html").read_text()
    assert re.search(r'<details class="check has-fail" open>\s*<summary><b>weights.strength', html)
    assert re.search(r'<details class="check has-pass">\s*<summary><b>weights.lora', html)


def test_differences_say_how_much_they_are_amplified(tmp_path: Path) -> None:
    samples = example.pictures(60)
    assert gain(samples.pictures) == 4
    most = amplified(samples.pictures[0], 4)
    assert most.max() == 240
    html = written(example.true(samples), tmp_path)["html"]
    assert html.count("<figcaption>difference ×4</figcaption>") == 3
    assert "the largest difference is 60 of 255" in html
    assert json.loads((tmp_path / "report.json").read_text())["grid"]["difference_factor"] == 4
    same = tuple(
        replace(each, pictures={**each.pictures, "baked": each.pictures["runtime"]}) for each in samples.pictures
    )
    assert gain(same) == 64
    assert (
        "<figcaption>no difference</figcaption>"
        in written(example.true(replace(samples, pictures=same)), tmp_path)["html"]
    )


# -- report.json, junit.xml, summary.md ----------------------------------------------------------------


def test_the_record_has_its_documented_shape(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    samples = example.pictures()
    equal = replace(samples.pictures[0].likeness["baked"], psnr=math.inf)
    first = replace(samples.pictures[0], likeness={"baked": equal})
    verification = example.true(replace(samples, pictures=(first,)), (example.FAINT,))
    record = json.loads(written(verification, tmp_path)["json"], parse_constant=refuse)
    check(record)
    counts = {entry["status"]: entry["count"] for entry in record["counts"]}
    assert counts == {"pass": 10, "skip": 0, "warn": 1, "error": 0, "fail": 0}
    assert record["stages"][1] == {"stage": "weights", "seconds": 3.2}
    assert record["samples"]["pictures"][0]["likeness"]["baked"]["psnr"] == "Infinity"
    assert record["plan"] == json.loads(json.dumps(example.small_plan().report()))
    assert record["recipe"]["normal"]["loras"][0]["path"] == "ink_style.safetensors"
    assert record["grid"]["columns"] == ["base", "runtime", "baked", "difference"]
    assert record["effects"][0].keys() == {"lora", "component", "block", "relative"}
    warned = next(finding for finding in record["findings"] if finding["status"] == "warn")
    assert warned == {
        "check": "weights.resolution",
        "status": "warn",
        "subject": "ink_style.safetensors",
        "count": None,
        "measured": 0.83,
        "limit": 0.9,
        "unit": "share",
        "message": "the rest was lost below the output dtype's resolution (measured 83%, limit 90%).",
    }
    settings = record["samples"]["settings"]
    assert (settings["steps"], settings["size"], settings["guidance"], settings["tokens"]) == (
        20,
        [64, 64],
        5.0,
        None,
    )


@pytest.mark.parametrize("name", example.EXAMPLES)
def test_every_record_is_as_its_schema_says(name: str) -> None:
    check(report.record.render(example.EXAMPLES[name]()).decode())


def test_junit_counts_what_it_holds(tmp_path: Path) -> None:
    verification = example.many()
    root = ElementTree.fromstring(written(verification, tmp_path)["junit"])
    for holder in (root, *root):
        cases = holder.findall(".//testcase")
        assert int(holder.get("tests", "")) == len(cases)
        assert int(holder.get("failures", "")) == sum(case.find("failure") is not None for case in cases)
        assert int(holder.get("skipped", "")) == sum(case.find("skipped") is not None for case in cases)
        assert float(holder.get("time", "")) > 0
    names = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
    assert len(names) == len(set(names)) == len(verification.findings)
    warned = [case for case in root.iter("testcase") if case.find("system-out") is not None]
    assert len(warned) == sum(finding.status is Status.WARN for finding in verification.findings)


def test_the_summary_is_short_and_failures_come_first(tmp_path: Path) -> None:
    loud = [
        Finding("weights.values", status, f"tensor {number}", note="holds other values")
        for status in (Status.WARN, Status.FAIL)
        for number in range(40)
    ]
    text = written(replace(example.true(), findings=tuple(loud)), tmp_path)["markdown"]
    rows = [line for line in text.splitlines() if "weights.values" in line]
    assert len(rows) == MOST_ROWS
    assert "| 🟡 warn |" in text
    assert [row.startswith("| ❌ fail") for row in rows] == [True] * 40 + [False] * 10
    assert "30 more are in the report." in text


# -- pictures and plots --------------------------------------------------------------------------------


def decoded(data: bytes) -> tuple[np.ndarray, dict[bytes, bytes]]:
    """Read a PNG of the Paeth filter byte by byte."""
    chunks, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(name + body)
        chunks[name], at = body, at + 12 + length
    width, height, *kind = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert kind == [8, 2, 0, 0, 0]
    raw = zlib.decompress(chunks[b"IDAT"])
    lines = [bytearray(3 * width)]
    for row in range(height):
        start = row * (3 * width + 1)
        assert raw[start] == 4
        line, up = bytearray(raw[start + 1 : start + 1 + 3 * width]), lines[-1]
        for x in range(3 * width):
            a, b, c = (line[x - 3] if x > 2 else 0), up[x], (up[x - 3] if x > 2 else 0)
            line[x] = (line[x] + min((a, b, c), key=lambda value, p=a + b - c: abs(p - value))) & 255
        lines.append(line)
    return np.frombuffer(b"".join(lines[1:]), np.uint8).reshape(height, width, 3), chunks


def test_png_keeps_every_pixel() -> None:
    for shape in ((1, 1, 3), (5, 3, 3), (17, 40, 3)):
        pixels = np.random.default_rng(shape[0]).integers(0, 256, shape).astype(np.uint8)
        assert np.array_equal(decoded(png(pixels))[0], pixels)


def test_the_grid_has_a_row_for_each_prompt(tmp_path: Path) -> None:
    samples = example.pictures(60)
    path = report.write(example.true(samples), tmp_path)["grid"]
    pixels, chunks = decoded(path.read_bytes())
    side, gap = 3 * example.SIDE, 8
    assert pixels.shape == (3 * (side + gap) + gap, 4 * (side + gap) + gap, 3)
    owl = pixels[gap + 2 * (side + gap) :][:side]
    for column, model in enumerate(("base", "runtime", "baked")):
        shown = owl[:, gap + column * (side + gap) :][:, :side]
        assert np.array_equal(shown[1::3, 1::3], samples.pictures[2].pictures[model])
    assert b"baked - runtime, absolute, x4" in chunks[b"tEXt"]


def test_effects_are_drawn_on_one_scale_and_keep_their_colour() -> None:
    found = [Effect("a/one.safetensors", "unet", "in", 0.2), Effect("two", "unet", "in", 0.1)]
    found += [Effect("two", "unet", "out", 0.05), Effect("a/one.safetensors", "unet", "out", math.nan)]
    plot = ElementTree.fromstring(plots.effects(found, ["zero", "a/one.safetensors", "two"]))
    bars = [rect for rect in plot.iter("rect") if rect.find("title") is not None]
    widths = [float(bar.get("width", "")) for bar in bars]
    assert [bar.get("class") for bar in bars] == ["s1", "s2", "s2"]
    assert widths[0] == pytest.approx(2 * widths[1], rel=1e-3) == pytest.approx(4 * widths[2], rel=1e-3)
    assert [title.text for title in plot.iter("title")][1] == "a/one.safetensors, in: 0.2"
    texts = [text.text for text in plot.iter("text")]
    assert {"one", "two", "in", "out", "NaN"} <= set(texts)


@pytest.mark.parametrize("top", [0.0, 1e-12, 0.0099, 0.01, 0.37, 1.0, 3.0, 4.0, 9.99, 1234.0])
def test_effects_of_any_size_fit_their_column(top: float) -> None:
    plot = ElementTree.fromstring(plots.effects([Effect("a", "unet", "in", top)], ["a"]))
    width = float(plot.get("width", ""))
    for bar in plot.iter("rect"):
        assert float(bar.get("x", "")) + float(bar.get("width", "")) <= width
    ticks = [float(text.text or "") for text in plot.iter("text") if text.get("class") == "tick"]
    assert 2 <= len(ticks) <= 6
    assert ticks[-1] >= top


def test_places_between_floor_and_ceiling() -> None:
    def dot(*distances: float | None) -> float:
        circle = ElementTree.fromstring(plots.place(*distances)).find("circle")
        assert circle is not None
        return float(circle.get("cx", ""))

    assert dot(0.001, 0.0, 0.5) < dot(0.001, 0.0005, 0.5) < dot(0.001, 0.002, 0.5) < dot(0.001, 0.5, 0.5)
    assert dot(0.0, 0.0, 0.5) == dot(0.001, 0.0, 0.5)
    assert not plots.place(0.0, 0.0, 0.0)
    assert not plots.place(None, 0.1, 0.2)
    assert not plots.place(0.1, math.nan, 0.2)


def test_logits_that_are_all_zero_draw_nothing_and_single_ones_something() -> None:
    assert not plots.logits({"baked": (0.0, 0.0), "floor": ()})
    drawn = ElementTree.fromstring(plots.logits({"baked": (0.0,), "base": (3.0, math.nan), "runtime": ()}))
    assert {line.get("class"): len((line.get("points") or "").split()) for line in drawn.iter("polyline")} == {
        "baked": 1,
        "base": 1,
    }
