"""Say what is wrong with a recipe's text, in the words of people who write recipes rather than of YAML's grammar.

YAML's reader often notices a mistake later than it was made: an open quote at the end of the file, a missing space on
the next line. So each rule here looks at the lines around the spot, and may tell of another one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from itertools import takewhile

import yaml

from lorabake.errors import RecipeError
from lorabake.paths import MODEL_SUFFIXES, no_plain_path
from lorabake.recipe.scene import Scene, Told
from lorabake.recipe.words import Fault, Spot, quoted, spaces

UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""How texts in UTF-16 begin."""

STRANGE_SPACES = "\u00a0\u2002\u2003\u2007\u2009\u200b\u202f\u3000\ufeff"
"""Characters that look like a space, or like nothing, and that YAML reads as letters."""

_BEGINNING = re.compile(r"(?P<indent>[ ]*(?:-[ ]+)*)(?P<key>[\w.]+)(?P<sign>[ ]*[:=][ ]*)(?P<value>.*)")
"""A line that has a key, or was meant to have one."""

_CLOSER = {"[": "]", "{": "}"}


def decoded(data: bytes, name: str) -> str:
    """Decode a recipe's bytes; raise RecipeError where they are no UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if data.startswith(UTF_16):
            raise RecipeError(f"{name}: is a text in UTF-16, and a recipe is one in UTF-8", _SAVE) from None
        before = data[: error.start].decode("utf-8")
        spot = Spot(name, before.count("\n"), len(before) - before.rfind("\n") - 1)
        what = f"not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        raise RecipeError(Fault(spot, what).line, _SAVE) from error


_SAVE = "Save the recipe as UTF-8: in Notepad by Save as, Encoding; in PowerShell by Set-Content -Encoding utf8."


def syntax_error(error: yaml.MarkedYAMLError, text: str, name: str, place: yaml.Mark) -> RecipeError:
    """Return what a mistake in YAML is called here; `place` is where the reader stands if the error does not say."""
    scene = Scene.of(error, text, place)
    told = next((told for rule in _RULES if (told := rule(scene)) is not None), None) or scene.told(
        f"not valid YAML: {', '.join(filter(None, (error.context, error.problem)))}",
        "Look at the quotes, brackets, colons and spaces of this line and of the line above.",
    )
    return RecipeError(Fault(Spot(name, told.line, told.column), told.what).line, told.advice)


def in_quotes(text: str) -> str:
    """Write a text as YAML in single quotes, in which nothing but the quote itself has a meaning."""
    return "'" + text.replace("'", "''") + "'"


def without_backslashes(text: str) -> str:
    """Say how to write a Windows path: 'C:\\models' or C:/models."""
    return f"{in_quotes(text)} or {text.replace(chr(92), '/')}"


def is_of_a_template(variable: str) -> str:
    """Say what is wrong with {{ base }}, which other programs fill in."""
    return f"{variable} is a variable of a template, and lorabake fills in no templates"


def _template(scene: Scene) -> Told | None:
    match = re.search(r"\{\{[^{}]*\}\}", scene.at(scene.line))
    return match and Told(scene.line, match.start(), is_of_a_template(match[0]), "Write the value itself.")


def _strange_space(scene: Scene) -> Told | None:
    for line in (scene.line, scene.above):
        for column, letter in enumerate(scene.at(line)):
            if letter in STRANGE_SPACES:
                what = f"the character U+{ord(letter):04X}, which only looks like a space"
                return Told(line, column, what, "Type the spaces of this line again: it was copied from elsewhere.")
    return None


def _escape(scene: Scene) -> Told | None:
    if "double-quoted" not in scene.context:
        return None
    column = scene.before.rfind("\\")
    letters = scene.at(scene.line)[column : column + 2]
    opening = scene.before.rfind('"', 0, column) + 1
    written = scene.at(scene.line)[opening:].partition('"')[0]
    what = f"{letters} in double quotes is an escape that YAML does not know"
    if letters[1:] in ("x", "u", "U"):
        what = f"{letters} in double quotes begins the number of a character, and no number follows"
    return Told(scene.line, column, what, f"Write {without_backslashes(written)}")


def _tab(scene: Scene) -> Told | None:
    if r"'\t'" not in scene.problem:
        return None
    where = "the tabs at the beginning of this line" if not scene.before.strip() else "the tab"
    return scene.told("a tab, where YAML takes spaces only", f"Replace {where} by spaces.")


def _first_letter(scene: Scene) -> Told | None:
    """Tell of a value whose first letter has a meaning in YAML."""
    line, column = scene.line, scene.column
    if match := re.match(r"found character '(.)' that cannot start", scene.problem):
        first = match[1]
    elif scene.start and re.match("while scanning (an alias|an anchor|a block scalar|a tag)", scene.context):
        line, column = scene.start.line, scene.start.column
        first = scene.lines[line][column]
    elif "undefined alias" in scene.problem:
        first = scene.lines[line][column]
    elif "<document" in scene.problem and (percent := _directive(scene.lines)) is not None:
        line, column, first = percent, 0, "%"
    else:
        return None
    value = scene.at(line)[column:]
    if re.search(r"[\[{]", scene.at(line)[:column]):
        value = re.split(r"[,\]}]", value)[0].rstrip()
    if re.search(r"\b(?:base|path|vae): *$", scene.at(line)[:column]) or value.rstrip("`").endswith(MODEL_SUFFIXES):
        bare = value[1:-1] if re.fullmatch("`[^`]+`", value) else None
        words = f"Write {bare} without the backticks." if bare else first == "%" and no_plain_path(value)
        if words:
            return Told(line, column, f"a value cannot begin with {'a backtick' if bare else first}", words)
    return Told(line, column, f"a text that begins with {first} must be in quotes", f"Write {in_quotes(value)}")


def _directive(lines: list[str]) -> int | None:
    return next((number for number, line in enumerate(lines) if line.startswith("%")), None)


def _open_quote(scene: Scene) -> Told | None:
    if "quoted scalar" not in scene.context or scene.start is None:
        return None
    line, column = scene.start.line, scene.start.column
    return _close_quote(scene, line, column, "this quote is never closed")


def _close_quote(scene: Scene, line: int, column: int, what: str) -> Told:
    quote, value = scene.lines[line][column], scene.at(line)[column + 1 :]
    example = value.rstrip(f"{quote}, ")
    advice = f"Close it where the value ends: {quote}{example}{quote}" if example else "Close it, or remove it."
    return Told(line, column, what, advice)


def _after_quote(scene: Scene) -> Told | None:
    """Tell of text behind a closing quote, which often is a quote that was not closed where it should have been."""
    if "<scalar>" not in scene.problem:
        return None
    scalars = [token for token in _tokens(scene.text) if isinstance(token, yaml.ScalarToken)]
    here = (scene.line, scene.column)
    earlier = [*takewhile(lambda token: (token.start_mark.line, token.start_mark.column) < here, scalars)]
    if not earlier or earlier[-1].style not in ("'", '"'):
        return None
    start, end = earlier[-1].start_mark, earlier[-1].end_mark
    if start.line < end.line:
        return _close_quote(scene, start.line, start.column, f"this quote is closed only on line {end.line + 1}")
    if end.line != scene.line:
        return None
    if earlier[-1].style == "'":
        written = scene.at(start.line)[start.column + 1 :].removesuffix("'")
        return scene.told(
            "text after the closing quote", f"Write '' for a ' inside single quotes: {in_quotes(written)}"
        )
    return scene.told("text after the closing quote", "Put the whole value into the quotes.")


def _tokens(text: str) -> list[yaml.Token]:
    """List the tokens of a text as far as YAML's reader gets."""
    tokens: list[yaml.Token] = []
    with suppress(yaml.YAMLError):
        tokens.extend(yaml.scan(text, yaml.SafeLoader))
    return tokens


def _second_document(scene: Scene) -> Told | None:
    if "single document" not in scene.context:
        return None
    return scene.told("a second recipe begins here", "A file holds one recipe: give each recipe a file of its own.")


def _list_beside_key(scene: Scene) -> Told | None:
    if "sequence entries" not in scene.problem:
        return None
    items = scene.rest.removeprefix("-").strip()
    return scene.told(
        "a list with dashes cannot begin on the line of its key",
        f"Write each entry on a line of its own below, or in brackets: {scene.before.strip()} [{items}]",
    )


def _reference(scene: Scene) -> Told | None:
    """Tell of ${axis} within brackets, where YAML takes its brace for one of its own."""
    if "flow" not in scene.context or not (scene.before.endswith("$") and scene.rest.startswith("{")):
        return None
    before = re.split(r"[\[{,]|:\s|^\s*-\s", scene.before)[-1].lstrip()
    after = re.match(r"(?:\{[^{}]*\}[^,\[\]{}]*)*", scene.rest)
    value = before + (after[0].rstrip() if after else "")
    return Told(
        scene.line,
        scene.column - len(before),
        "inside [ ] and { }, a text with ${ must be in quotes",
        f'Put it in quotes: "{value}"' if "}" in value else "Put the whole text in quotes.",
    )


def _bracket(scene: Scene) -> Told | None:
    """Tell of brackets that are open, or are closed by the wrong one, and of missing commas between them."""
    if scene.start is None or "flow" not in scene.context:
        return None
    line, column = scene.start.line, scene.start.column
    if scene.lines[line][column : column + 1] not in [*_CLOSER]:  # the reader names the spot after a bracket
        column = max(scene.lines[line].rfind(bracket, 0, column) for bracket in _CLOSER)
    if column < 0:
        return None
    opener = scene.lines[line][column]
    closer = _CLOSER[opener]
    if scene.rest[:1] in _CLOSER.values():
        return scene.told(
            f"{scene.rest[0]} does not close the {opener} of line {line + 1}", f"Write {closer} instead."
        )
    if scene.line > line or "stream end" in scene.problem:
        return Told(line, column, f"this {opener} is never closed", f"Write {closer} after the last value in it.")
    word = re.search(r"(\S+)\s*$", scene.before)
    missing = f"a comma is missing before {quoted(word[1])}" if word else "a comma is missing here"
    return scene.told(missing, f"Write commas between the values in {opener} and {closer}.")


def _closes_nothing(scene: Scene) -> Told | None:
    closing = scene.rest[:1]
    if closing not in ("]", "}") or f"found '{closing}'" not in scene.problem:
        return None
    return scene.told(f"this {closing} closes nothing", "Remove it. If it belongs to a text, put the text in quotes.")


def _second_colon(scene: Scene) -> Told | None:
    """Tell of a second colon in a line."""
    if "mapping values" not in scene.problem:
        return None
    match = _BEGINNING.fullmatch(scene.at(scene.line))
    if match is None or len(match["indent"] + match["key"]) >= scene.column:
        return None
    key, value = match["key"], match["value"]
    if second := re.match(r"([^,]*), *(\w+): (.*)", value):
        pair = f"{{{key}: {second[1]}, {second[2]}: {second[3]}}}"
        return scene.told(
            "a second key on the same line", f"Write it on a line of its own, or both in braces: {pair}"
        )
    advice = f"Put the value in quotes: {key}: {in_quotes(value)}"
    return scene.told("a colon with a space behind it, inside a value", advice)


def _no_space(scene: Scene) -> Told | None:
    """Tell of a key whose colon has no space behind it, or that has another sign than a colon."""
    is_key = "simple key" in scene.context
    if not is_key and "mapping values" not in scene.problem:
        return None
    line = scene.start.line if is_key and scene.start is not None else scene.above
    match = _BEGINNING.fullmatch(scene.at(line))
    if match is None or re.fullmatch(r" *: +", match["sign"]) or not match["value"]:
        return None
    column = len(match["indent"]) + len(match["key"])
    sign = match["sign"].strip()
    what = "no space after the colon" if sign == ":" else "a recipe has a colon where this has ="
    return Told(line, column, what, f"Write {match['key']}: {match['value'].strip()}")


def _no_key(scene: Scene) -> Told | None:
    if "simple key" not in scene.context or scene.start is None:
        return None
    what = "this line is neither a key with its value nor an entry of a list"
    return Told(scene.start.line, scene.start.column, what, "Write it as key: value, or behind a dash in a list.")


def _no_dash(scene: Scene) -> Told | None:
    """Tell of a LoRA whose path has no dash, with its other keys indented as if it had one."""
    path = _BEGINNING.fullmatch(scene.at(scene.above))
    loras = next((scene.at(number) for number in reversed(range(max(scene.above, 0))) if scene.at(number)), "")
    if "mapping values" not in scene.problem or path is None or loras.rstrip() != "loras:":
        return None
    if path["key"] != "path" or "-" in path["indent"]:
        return None
    what = "a dash is missing: each entry of loras begins with one"
    advice = f"Write \"- path: {path['value']}\", with the other keys below 'path'."
    return Told(scene.above, len(path["indent"]), what, advice)


def _too_deep(scene: Scene) -> Told | None:
    """Tell of a key that stands deeper than the line above, which has a value already."""
    if "mapping values" not in scene.problem:
        return None
    here, above = _BEGINNING.fullmatch(scene.at(scene.line)), _BEGINNING.fullmatch(scene.at(scene.above))
    if here is None or above is None:
        return None
    advice = f"Indent it like {quoted(above['key'])} on line {scene.above + 1}."
    if not here["value"]:
        advice = f"Do not indent it, if it is a key of the recipe. If not, indent it like {quoted(above['key'])}."
    elif above["key"] in ("base", "vae"):
        pair = f"{{path: {above['value']}, {here['key']}: {here['value']}}}"
        advice = f"If it belongs to {above['key']}, write {above['key']}: {pair}. If not, do not indent it."
    what = f"{quoted(here['key'])} is indented below {quoted(above['key'])}, which has its value already"
    return Told(scene.line, len(here["indent"]), what, advice)


def _dash(scene: Scene) -> Told | None:
    if "found '-'" not in scene.problem:
        return None
    return scene.told(
        "a dash where a key is due",
        "Remove the dash if this is a key. A new entry of a list has its dash below that of the first one.",
    )


def _odd_indent(scene: Scene) -> Told | None:
    if "block end" not in scene.problem or scene.before.strip():
        return None
    columns: dict[int, tuple[str, int]] = {}
    for number in range(scene.line):
        if match := _BEGINNING.fullmatch(scene.at(number)):
            columns[len(match["indent"])] = match["key"], number + 1
    if not columns:
        return None
    column = min(columns, key=lambda known: abs(known - scene.column))
    key, line = columns[column]
    advice = f"Begin it with {spaces(column)}, like {quoted(key)} on line {line}."
    return scene.told(f"this line begins with {spaces(scene.column)}, and no line above does", advice)


_RULES: tuple[Callable[[Scene], Told | None], ...] = (
    _template,
    _strange_space,
    _escape,
    _tab,
    _first_letter,
    _open_quote,
    _after_quote,
    _second_document,
    _list_beside_key,
    _reference,
    _bracket,
    _closes_nothing,
    _second_colon,
    _no_space,
    _no_key,
    _no_dash,
    _too_deep,
    _dash,
    _odd_indent,
)
"""What may be wrong. The first rule that fits tells."""
