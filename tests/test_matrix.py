"""A recipe with a matrix stands for several outputs: the same as if each recipe had been written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from lorabake.errors import RecipeError
from lorabake.recipe import Recipe, load_recipe, load_recipes, only, parse_recipe, recipe_schema, recipes_of
from lorabake.recipe.matrix import variants
from lorabake.recipe.values import read_values

REST = """base: base.safetensors
loras:
  - path: ${style}.safetensors
    strength: ${strength}
output: {path: "out/${style}-${strength}.safetensors"}
"""

NAMELESS = REST.replace("out/${style}", "out/x")


def recipes(matrix: str, rest: str = REST) -> tuple[Recipe, ...]:
    """Expand a recipe; the matrix is in YAML's flow style."""
    text = f"version: 1\nmatrix: {matrix}\n{rest}"
    return recipes_of(read_values(text, "sweep.yaml"), Path("/here"), None, text)


def fault(matrix: str, rest: str = REST) -> str:
    with pytest.raises(RecipeError) as error:
        recipes(matrix, rest)
    return str(error.value)


def test_axes_are_combined_the_last_one_fastest() -> None:
    expanded = recipes("{style: [ink, oil], strength: [0.4, 1, 1.0e-3]}")
    assert [recipe.name for recipe in expanded] == [
        "ink-0.4", "ink-1", "ink-0.001", "oil-0.4", "oil-1", "oil-0.001",
    ]  # fmt: skip
    assert [recipe.loras[0].strength for recipe in expanded[:3]] == [0.4, 1, 0.001]
    assert expanded[4].choices == {"style": "oil", "strength": "1"}


def test_each_is_the_recipe_written_out() -> None:
    for recipe in recipes("{style: [ink, oil], strength: [0.4, 0.8]}"):
        style, strength = recipe.choices["style"], recipe.choices["strength"]
        rest = REST.replace("${style}", style).replace("${strength}", strength)
        alone = parse_recipe(f"version: 1\n{rest}", Path("/here"))
        assert recipe.normal_json() == alone.normal_json()
        assert recipe.output.path == alone.output.path
        assert recipe.text is not None
        assert parse_recipe(recipe.text, Path("/here")).normal_json() == alone.normal_json()


def test_values_of_any_type_have_names() -> None:
    rest = 'base: b.safetensors\nloras: ${set}\noutput: {path: "${set}.safetensors"}\n'
    expanded = recipes("{set: {one: [a.st], both: [a.st, {path: b.st, strength: 0.5}]}}", rest)
    assert [(recipe.name, len(recipe.loras)) for recipe in expanded] == [("one", 1), ("both", 2)]
    assert expanded[1].loras[1].strength == 0.5


def test_values_may_refer_to_other_axes() -> None:
    rest = 'base: b.safetensors\nloras: ${set}\noutput: {path: "${set}-${s}.safetensors"}\n'
    expanded = recipes('{s: [0.1, 0.2], set: {ink: [{path: a.st, strength: "${s}"}]}}', rest)
    assert [recipe.loras[0].strength for recipe in expanded] == [0.1, 0.2]
    assert "refers to itself" in fault('{s: [1], set: {ink: ["${set}"]}}', rest)


def test_exclude_and_include_are_those_of_ci() -> None:
    left = recipes("{style: [ink, oil], strength: [0.4, 0.8], exclude: [{style: oil, strength: 0.4}]}")
    assert [recipe.name for recipe in left] == ["ink-0.4", "ink-0.8", "oil-0.8"]
    added = recipes("{style: [ink], strength: [0.4], include: [{style: wax, strength: 2}]}")
    assert [recipe.name for recipe in added] == ["ink-0.4", "wax-2"]
    alone = recipes("{include: [{style: ink, strength: 0.4}, {style: oil, strength: 0.6}]}")
    assert [recipe.name for recipe in alone] == ["ink-0.4", "oil-0.6"]
    rest = REST.replace("strength: ${strength}\n", "strength: ${strength}\n    components: ['${part}']\n")
    wider = recipes(
        "{style: [ink, oil], strength: [0.4], include: [{part: unet}, {style: oil, part: text_encoder}]}", rest
    )
    assert [recipe.loras[0].components for recipe in wider] == [("unet",), ("text_encoder",)]


def test_entries_fit_numbers_however_they_are_written() -> None:
    left = recipes("{style: [ink, oil], strength: [1, 2], exclude: [{style: oil, strength: 1.0}]}")
    assert [recipe.name for recipe in left] == ["ink-1", "ink-2", "oil-2"]
    rest = REST.replace("strength: ${strength}\n", "strength: ${strength}\n    components: ['${part}']\n")
    wider = recipes("{style: [ink], strength: [1], include: [{strength: 1.0, part: unet}]}", rest)
    assert [(recipe.name, recipe.loras[0].components) for recipe in wider] == [("ink-1", ("unet",))]


def test_a_dollar_can_be_written() -> None:
    rest = 'base: "$${a}.st"\nloras: [x.st]\noutput: {path: "${a}$.st"}\n'
    (recipe,) = recipes("{a: [1]}", rest)
    assert (recipe.base.path, recipe.output.path) == ("${a}.st", "1$.st")


def test_a_recipe_without_a_matrix_is_one() -> None:
    values = read_values("version: 1\nbase: b.st\nloras: [x.st]\noutput: {path: o.st}\n", "r.yaml")
    (variant,) = variants(values)
    assert variant.values is values


@pytest.mark.parametrize(
    ("matrix", "rest", "words"),
    [
        ("[1]", REST, "sweep.yaml:2:9: matrix must be a mapping of axes, found a list"),
        ("{}", REST, "sweep.yaml:2:9: the matrix has no axis\n"),
        ("[]", REST, "sweep.yaml:2:9: the matrix has no axis\n"),
        ("{style: [], strength: [1]}", REST, "sweep.yaml:2:17: the axis style has no values\n"),
        ("{style: {}, strength: [1]}", REST, "sweep.yaml:2:17: the axis style has no values\n"),
        ("{style: ink, strength: [1]}", REST, "the axis style must be a list of values"),
        ("{style: [ink, ink], strength: [1]}", REST, "sweep.yaml:2:23: the axis style has ink twice"),
        ("{style: [a], strength: [0.1, 0.10]}", REST, "sweep.yaml:2:38: the axis strength has 0.1 twice"),
        ("{style: [a], strength: [1, 1.0]}", REST, "sweep.yaml:2:36: the axis strength has 1.0 twice: it is 1"),
        ("{style: [a], strength: [1, '1']}", REST, "sweep.yaml:2:36: the axis strength has 1 twice"),
        ("{style: [[ink]], strength: [1]}", REST, "a value of the axis style is a list: give it a name"),
        ("{style: [~], strength: [1]}", REST, "a value of the axis style is nothing: give it a name"),
        ("{'a b': [1], style: [ink], strength: [1]}", REST, "the axis 'a b' needs a name of letters"),
        ("{style: [ink], strength: [1], size: [2, 3]}", REST, "sweep.yaml:2:39: nothing in the recipe uses the axis"),
        ("{stile: [ink], strength: [1]}", REST, "there is no axis 'style'; did you mean stile?"),
        ("{style: [ink], strength: [1]}", REST.replace("${style}-", ""), "nothing"),
        ("{style: [ink, oil], strength: [1]}", NAMELESS, "two outputs have the path out/x-1.safetensors: where "),
        ("{style: [ink], strength: [1], exclude: [{style: oil}]}", REST,
         "sweep.yaml:2:49: this entry of exclude fits no combination\nThe axis style has ink."),
        ("{style: [ink, oil], strength: [1], exclude: [{style: oli}]}", REST,
         "fits no combination\nThe axis style has ink, oil; did you mean oil?"),
        ("{style: [ink, oil], strength: [1], exclude: [{style: oil}, {strength: 1, style: oil}]}", REST,
         ":2:68: this entry of exclude fits no combination\nThe entries above it leave out all that it fits."),
        ("{style: [ink], strength: [1], exclude: [{stile: ink}]}", REST,
         "sweep.yaml:2:50: there is no axis 'stile'; did you mean style?\nThe axes are style, strength."),
        ("{style: [ink], strength: [1], excludes: [{style: ink}]}", REST,
         "a value of the axis excludes is a mapping; did you mean exclude?"),
        ("{style: [ink], strength: [1], includes: {style: oil}}", REST,
         "sweep.yaml:2:39: nothing in the recipe uses the axis includes; did you mean include?"),
        ("{style: [ink], strength: [1], include: [{stile: oil, strength: 2}]}", REST,
         "sweep.yaml:2:50: the axis style has no value where stile=oil, strength=2\nWrite style in place of stile."),
        ("{style: [ink], strength: [1], include: [{stile: oil}]}", REST,
         "sweep.yaml:2:50: nothing in the recipe uses the axis stile; did you mean style?"),
        ("{style: [ink], strength: [1], exclude: [{style: ink}]}", REST, "the matrix has no combination"),
        ("{style: [ink], strength: [1], exclude: {style: ink}}", REST, "exclude must be a list, found a mapping"),
        ("{style: [ink], strength: [1], include: [ink]}", REST, "an entry of include must be a mapping"),
        ("{style: [ink], strength: [1], include: [{style: oil}]}", REST, "strength has no value where style=oil"),
        ("{style: [a.b, c], strength: [" + ",".join(map(str, range(6000))) + "]}", REST, "12,000 combinations"),
        ("{style: [ink], strength: [much]}", REST, "sweep.yaml:2:35: strength must be a number or a mapping "
         "from component to number, found the text 'much' (a value of the axis strength, used on line 6)"),
        ("{style: [ink], strength: [1, '0.90']}", REST, ":2:38: strength must be a number or a mapping from "
         "component to number, found the text '0.90'; write 0.90 without quotes (a value of the axis strength"),
        ("{style: [ink], strength: {low: 0.1, high: [1]}}", REST, "sweep.yaml:2:51: strength must be a number"),
        ("{include: [{style: ink, strength: much}]}", REST, "sweep.yaml:2:43: strength must be a number"),
    ],
)  # fmt: skip
def test_faults_are_told_on_their_line(matrix: str, rest: str, words: str) -> None:
    if words == "nothing":
        assert len(recipes(matrix, rest)) == 1
    else:
        assert words in fault(matrix, rest)


@pytest.mark.parametrize(
    ("path", "matrix", "words"),
    [
        (
            "x.safetensors",
            "{style: [ink, oil], strength: [1, 2]}",
            "two outputs have the path x.safetensors: where style=ink, strength=1, and where style=ink, strength=2\n"
            "Write the axis strength into output.path, too: x-${strength}.safetensors",
        ),
        (
            "out/x",
            "{include: [{style: ink, strength: 1}, {style: oil, strength: 2}]}",
            "two outputs have the path out/x: where style=ink, strength=1, and where style=oil, strength=2\n"
            "Write the axes style, strength into output.path, too: out/x-${style}-${strength}",
        ),
        (
            "${style}/x-${strength}.safetensors",
            "{strength: [0.25], style: [a, b]}",
            "two outputs are called x-0.25: a/x-0.25.safetensors, where strength=0.25, style=a, and "
            "b/x-0.25.safetensors, where strength=0.25, style=b\n"
            "A name chooses an output (only='x-0.25'). It is the file's, without folder and ending: "
            "write the axis style into it, too: ${style}/x-${strength}-${style}.safetensors",
        ),
        (
            "${style}${strength}",
            "{style: [a, a1], strength: [1, 11]}",
            "two outputs have the path a11: where style=a, strength=11, and where style=a1, strength=1\n"
            "The values of the axes run together in it: write another sign between them, such as _",
        ),
        (
            "${style}",
            "{style: [a], strength: [1, 2]}",
            "two outputs have the path a: where style=a, strength=1, and where style=a, strength=2\n"
            "Write the axis strength into output.path",
        ),
    ],
)
def test_outputs_of_one_name_are_told_with_what_each_needs(path: str, matrix: str, words: str) -> None:
    assert fault(matrix, REST.replace("out/${style}-${strength}.safetensors", path)).endswith(words)


def test_one_recipe_is_asked_for_and_patterns_choose(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"version: 1\nmatrix: {{style: [ink, oil], strength: [0.4, 0.8]}}\n{REST}")
    with pytest.raises(RecipeError, match=r"stands for 4 outputs: ink-0.4, ink-0.8, oil-0.4, oil-0.8"):
        load_recipe(path)
    every = load_recipes(path)
    assert [recipe.file for recipe in every] == [path] * 4
    assert [recipe.name for recipe in only(every, ["ink-*", "*-0.8"])] == ["ink-0.4", "ink-0.8", "oil-0.8"]
    assert only(every, []) == every
    with pytest.raises(RecipeError, match="no output has such a name"):
        only(every, ["ink-*", "wax-*"])


NAMES = st.sampled_from(["a", "b", "c", "d"])


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(NAMES, st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True), min_size=1, max_size=3)
)
def test_the_number_of_outputs_is_the_product(axes: dict[str, list[int]]) -> None:
    path = "x" + "-".join(f"${{{axis}}}" for axis in axes)
    rest = f'base: b.st\nloras: [x.st]\noutput: {{path: "{path}"}}\n'
    expanded = recipes(str(axes).replace("'", ""), rest)
    count = 1
    for values in axes.values():
        count *= len(values)
    assert len({recipe.output.path for recipe in expanded}) == count == len(expanded)


def test_editors_know_the_matrix() -> None:
    validator = Draft202012Validator(recipe_schema())
    text = f"version: 1\nmatrix: {{style: [ink], strength: [0.4], exclude: [{{style: ink}}]}}\n{REST}"
    assert not [*validator.iter_errors(yaml.safe_load(text))]
    assert [*validator.iter_errors(yaml.safe_load(text.replace("${strength}\n", "much\n")))]
    assert [*validator.iter_errors(yaml.safe_load(text.replace("[0.4]", "[]")))]
