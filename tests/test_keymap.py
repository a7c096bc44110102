"""The language of key maps on tiny made-up tables: what each word of a `Row` does to names and views."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.table import Architecture, Bare, Component, Has, Lacks, Layout, Row
from lorabake.keymap.view import Picked, Region, View
from tests.tables import infos

Shapes = dict[str, tuple[int, ...]]


def expand(rows: tuple[Row, ...], tensors: Shapes, layout: int = 0, layouts: int = 2) -> dict[str, dict[str, View]]:
    """List the modules of a base in the numbered layout of a table."""
    component = Component(
        "net", tuple(Layout(f"l{i}", ("p.",) if i == layout else (), ()) for i in range(layouts)), rows
    )
    key_map = KeyMap.expand(Architecture("a", "A", (component,)), infos({f"p.{k}": v for k, v in tensors.items()}))
    return {name: dict(module.views) for name, module in key_map.modules.get("net", {}).items()}


def whole(key: str, *shape: int) -> View:
    return View((Region(f"p.{key}", 0, shape[0]),), shape)


# -- names ---------------------------------------------------------------------------------------------


def test_a_row_names_one_module_in_each_layout() -> None:
    modules = expand((Row(("a.0", "b")),), {"a.0.weight": (6, 4), "a.0.bias": (6,)})
    views = {"weight": whole("a.0.weight", 6, 4), "bias": whole("a.0.bias", 6)}
    assert modules == {"a.0": views, "b": views}


def test_all_below_a_row_without_rows_is_named_alike() -> None:
    modules = expand((Row(("a", "b")),), {"a.x.0.y.weight": (6, 4)})
    assert modules.keys() == {"a.x.0.y", "b.x.0.y"}


def test_rows_below_a_row_rename_some_and_leave_the_others_alike() -> None:
    rows = (Row(("a", "b"), (Row(("old", "new")),)),)
    modules = expand(rows, {"a.old.weight": (6, 4), "a.same.0.weight": (5, 4), "a.weight": (3, 4)})
    assert modules == {
        "a.old": {"weight": whole("a.old.weight", 6, 4)},
        "b.new": {"weight": whole("a.old.weight", 6, 4)},
        "a.same.0": {"weight": whole("a.same.0.weight", 5, 4)},
        "b.same.0": {"weight": whole("a.same.0.weight", 5, 4)},
        "a": {"weight": whole("a.weight", 3, 4)},
        "b": {"weight": whole("a.weight", 3, 4)},
    }


def test_numbers_are_carried_over_in_order() -> None:
    rows = (Row(("a.{}.b.{}", "{}.c_{}"), (Row(("x.{}", "y.{}")),)),)
    assert expand(rows, {"a.12.b.3.x.4.weight": (6, 4)}).keys() == {"a.12.b.3.x.4", "12.c_3.y.4"}


def test_a_number_beside_one_that_is_spelled_out_is_carried_over() -> None:
    rows = (Row(("up.{}.block.{}", "u.{}.{}")), Row(("up.3.block.{}", "first.{}")), Row(("up.3.block.1", "second")))
    tensors = {f"up.{i}.block.{j}.weight": (6, 4) for i, j in ((2, 1), (3, 0), (3, 1))}
    assert expand(rows, tensors).keys() - {key.removesuffix(".weight") for key in tensors} == {
        "u.2.1",
        "first.0",
        "second",
    }


def test_the_longest_path_wins() -> None:
    rows = (Row(("a", "short")), Row(("a.b.c", "long")))
    modules = expand(rows, {"a.b.c.weight": (6, 4), "a.b.d.weight": (5, 4)})
    assert modules.keys() == {"a.b.c", "long", "a.b.d", "short.b.d"}


def test_a_path_does_not_match_the_head_of_a_word() -> None:
    assert expand((Row(("a.1", "b")),), {"a.10.weight": (6, 4)}).keys() == {"a.10"}


def test_a_tensor_without_a_row_keeps_its_own_name() -> None:
    assert expand((Row(("a", "b")),), {"z.q.weight": (6, 4)}) == {"z.q": {"weight": whole("z.q.weight", 6, 4)}}


def test_what_is_no_weight_and_no_bias_is_a_module_by_its_full_name() -> None:
    rows = (Row(("a.{}", "b.{}"), (Row(("x", "y")), Row(("z", ("q", "k"))))),)
    tensors = {"table": (6, 4), "a.0.table": (1, 6, 4), "a.0.x.gamma": (4,), "a.0.s.x": (2,), "weight": (3,)}
    modules = expand(rows, tensors | {"a.0.z.scale": (2,)})  # that one has no name where its rows are cut
    due = {
        "table": "table",
        "a.0.table": "a.0.table",
        "b.0.table": "a.0.table",
        "a.0.s.x": "a.0.s.x",
    }
    due |= {"b.0.s.x": "a.0.s.x", "a.0.x.gamma": "a.0.x.gamma", "b.0.y.gamma": "a.0.x.gamma"}
    assert modules == {name: {"weight": whole(key, *tensors[key])} for name, key in due.items()}


def test_every_tensor_has_its_component() -> None:
    component = Component("net", (Layout("l", ("p.",), ()),), (Row(("a",)),))
    key_map = KeyMap.expand(
        Architecture("a", "A", (component,)), infos({"p.a.running_mean": (4,), "p.weight": (4,), "q.a.weight": (4,)})
    )
    assert key_map.owner == {"p.a.running_mean": "net", "p.weight": "net"}


def test_bare_is_a_tensor_by_itself() -> None:
    rows = (Row((Bare("position"), "emb.position")),)
    expected = {"weight": whole("position", 6, 4)}
    assert expand(rows, {"position": (6, 4)}) == {"position": expected, "emb.position": expected}
    assert expand(rows, {"emb.position.weight": (6, 4)}, layout=1).keys() == {"position", "emb.position"}


def test_at_stands_for_the_parameter_in_the_name() -> None:
    rows = (Row(("in_proj_@", "fused")), Row(("raw.@", "plain")))
    modules = expand(rows, {"in_proj_weight": (6, 4), "in_proj_bias": (6,), "raw.weight": (3, 4)})
    assert modules["in_proj_bias"] == {"weight": whole("in_proj_bias", 6)}  # its full name
    parts = {f"{name}.weight": (2, 4) for name in "qkv"}
    (view,) = expand((Row((("q", "k", "v"), "in_proj_@")),), parts)["in_proj_weight"].values()
    assert [region.key for region in view.regions] == ["p.q.weight", "p.k.weight", "p.v.weight"]
    assert modules["in_proj"] == {"weight": whole("in_proj_weight", 6, 4), "bias": whole("in_proj_bias", 6)}
    assert modules["fused"] == modules["in_proj"]
    assert modules["raw"] == modules["plain"] == {"weight": whole("raw.weight", 3, 4)}


# -- fused and split -----------------------------------------------------------------------------------

QKV = (Row(("qkv", ("q", "k", "v"))),)
LINEAR1 = (Row(("linear1", ("q", "k", "v", "mlp")), sizes=("in", "in", "in", "rest")),)


def test_a_split_name_reaches_its_rows_of_a_fused_tensor() -> None:
    modules = expand(QKV, {"qkv.weight": (12, 5), "qkv.bias": (12,)})
    assert modules["k"] == {
        "weight": View((Region("p.qkv.weight", 4, 8),), (4, 5)),
        "bias": View((Region("p.qkv.bias", 4, 8),), (4,)),
    }
    assert modules["qkv"]["weight"] == whole("qkv.weight", 12, 5)


def test_sizes_count_rows_in_the_inputs_of_the_weight_also_for_the_bias() -> None:
    modules = expand(LINEAR1, {"linear1.weight": (25, 5), "linear1.bias": (25,)})
    rows = {
        name: [(view.regions[0].start, view.regions[0].stop) for view in modules[name].values()]
        for name in ("q", "k", "v", "mlp")
    }
    assert rows == {"q": [(0, 5)] * 2, "k": [(5, 10)] * 2, "v": [(10, 15)] * 2, "mlp": [(15, 25)] * 2}
    assert modules["mlp"]["weight"].shape == (10, 5)


@pytest.mark.parametrize("shape", [(13, 5), (1, 5)])
def test_a_fused_tensor_that_cannot_be_cut_has_no_split_names(shape: tuple[int, ...]) -> None:
    assert expand(QKV, {"qkv.weight": shape}).keys() == {"qkv"}


@pytest.mark.parametrize("rows", [15, 14])
def test_a_fused_tensor_without_a_rest_has_no_split_names(rows: int) -> None:
    assert expand(LINEAR1, {"linear1.weight": (rows, 5)}).keys() == {"linear1"}


def test_a_fused_name_on_a_split_base_is_the_parts_in_order() -> None:
    tensors = {"v.weight": (2, 5), "q.weight": (6, 5), "k.weight": (3, 5)}
    modules = expand(QKV, tensors, layout=1)
    regions = (Region("p.q.weight", 0, 6), Region("p.k.weight", 0, 3), Region("p.v.weight", 0, 2))
    assert modules["qkv"] == {"weight": View(regions, (11, 5))}
    assert modules["k"]["weight"] == whole("k.weight", 3, 5)


def test_a_fused_name_needs_all_its_parts() -> None:
    modules = expand(QKV, {"q.weight": (6, 5), "k.weight": (6, 5)}, layout=1)
    assert modules.keys() == {"q", "qkv.0", "k", "qkv.1"}


@pytest.mark.parametrize(
    ("layout", "tensors"), [(0, {"qkv.weight": (12, 5)}), (1, {f"{n}.weight": (4, 5) for n in "qkv"})]
)
def test_parts_of_a_fused_module_also_go_by_number(layout: int, tensors: Shapes) -> None:
    modules = expand(QKV, tensors, layout=layout)
    assert modules.keys() == {"qkv", "q", "k", "v", "qkv.0", "qkv.1", "qkv.2"}
    assert [modules[f"qkv.{part}"] for part in range(3)] == [modules[name] for name in "qkv"]


def test_numbered_parts_are_joined_per_block() -> None:
    rows = (Row(("b.{}", "l.{}"), QKV),)
    tensors = {f"l.{i}.{n}.weight": (2, 3) for n in "qkv" for i in (0, 1)}
    modules = expand(rows, tensors, layout=1)
    assert [region.key for region in modules["b.1.qkv"]["weight"].regions] == [f"p.l.1.{n}.weight" for n in "qkv"]


def test_swapped_halves_are_read_in_the_other_order_across_layouts_only() -> None:
    rows = (Row(("ada", "norm"), swapped=("l1",)),)
    for layout, name, other in ((0, "ada", "norm"), (1, "norm", "ada")):
        modules = expand(rows, {f"{name}.weight": (6, 4), f"{name}.bias": (6,)}, layout=layout)
        key = f"p.{name}.weight"
        assert modules[name]["weight"] == View((Region(key, 0, 6),), (6, 4))
        assert modules[other]["weight"] == View((Region(key, 3, 6), Region(key, 0, 3)), (6, 4))
        assert [region.start for region in modules[other]["bias"].regions] == [3, 0]


def test_halves_may_be_swapped_at_one_ratio_of_rows_to_columns_only() -> None:
    rows = (Row(("m.{}", "n.{}"), swapped=("l0",), swapped_ratio=2),)
    modules = expand(rows, {"m.0.weight": (8, 4), "m.0.bias": (8,), "m.1.weight": (12, 4), "m.1.bias": (12,)})
    assert [region.start for view in modules["n.0"].values() for region in view.regions] == [4, 0, 4, 0]
    assert modules["n.1"] == {"weight": whole("m.1.weight", 12, 4), "bias": whole("m.1.bias", 12)}


def test_a_name_that_two_layouts_give_to_different_tensors_is_left_out() -> None:
    rows = (Row(("b.{}", "b.{}"), (Row(("one", "two")), Row(("two", "one")))),)
    assert expand(rows, {"b.0.one.weight": (4,), "b.0.two.weight": (4,)}).keys() == set()
    assert expand(rows, {"b.0.one.weight": (4,)}).keys() == {"b.0.one", "b.0.two"}


def test_transposed_turns_matrices_in_that_layout_only() -> None:
    rows = (Row(("a", "b"), transposed=("l0",)),)
    here = expand(rows, {"a.weight": (6, 4), "a.bias": (4,)})
    turned = View((Region("p.a.weight", 0, 6),), (4, 6), transpose=True)
    assert here["b"] == {"weight": turned, "bias": whole("a.bias", 4)}
    assert here["a"] == here["b"] | {"stored_weight": whole("a.weight", 6, 4)}
    assert expand(rows, {"b.weight": (4, 6)}, layout=1)["a"]["weight"] == whole("b.weight", 4, 6)


# -- components ------------------------------------------------------------------------------------------


def place(layouts: tuple[Layout, ...], tensors: Shapes) -> tuple[str, str] | None:
    key_map = KeyMap.expand(Architecture("a", "A", (Component("net", layouts),)), infos(tensors))
    found = key_map.placed.get("net")
    return found and (found[0].name, found[1])


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"m.x.weight": (8, 4)}, ("one", "m.")),
        ({"x.weight": (8, 4)}, ("one", "")),
        ({"m.x.weight": (8, 4), "x.weight": (8, 4)}, ("one", "m.")),
        ({"x.weight": (8, 4, 1, 1)}, ("two", "")),
        ({"x.weight": (8, 4), "y.weight": (1,)}, None),
        ({"n.x.weight": (8, 4)}, None),
    ],
)
def test_a_component_lies_where_its_needs_hold(tensors: Shapes, expected: tuple[str, str] | None) -> None:
    layouts = (
        Layout("one", ("m.", ""), (Has("x.weight", ndim=2), Lacks("y.weight"))),
        Layout("two", ("",), (Has("x.weight", ndim=4),)),
    )
    assert place(layouts, tensors) == expected


@pytest.mark.parametrize(("shape", "holds"), [((4, 12), True), ((4, 8), False), ((12, 4), False), ((4,), False)])
def test_a_ratio_compares_columns_with_rows(shape: tuple[int, ...], holds: bool) -> None:
    assert Has("x", ratio=3).holds(infos({"x": shape}), "") is holds


def test_a_family_is_not_recognised_beside_what_it_excludes() -> None:
    component = Component("net", (Layout("l", ("",), (Has("x.weight"),)),))
    family = Architecture("a", "A", (component,), without=("unet.",))
    assert family.fits(infos({"x.weight": (2, 2)}))
    assert not family.fits(infos({"x.weight": (2, 2), "unet.y": (1,)}))


def test_a_component_without_a_prefix_leaves_the_others_their_tensors() -> None:
    parts = (Component("all", (Layout("l", ("",), ()),)), Component("part", (Layout("l", ("q.",), ()),)))
    key_map = KeyMap.expand(Architecture("a", "A", parts), infos({"x.weight": (2, 2), "q.y.weight": (2, 2)}))
    assert key_map.owner == {"x.weight": "all", "q.y.weight": "part"}


# -- reading and adding ------------------------------------------------------------------------------------


@st.composite
def views(draw: st.DrawFn) -> tuple[View, Shapes]:
    """Draw a view of every sort: whole, sliced, of several tensors or rows of one, transposed, of experts."""
    if draw(st.booleans()):
        return draw(views_of_stacks())
    columns = draw(st.sampled_from([(), (1,), (3,), (2, 2, 2)]))
    if draw(st.booleans()) and len(columns) == 1:
        rows = draw(st.integers(1, 5))
        return View((Region("t", 0, rows),), (columns[0], rows), transpose=True), {"t": (rows, *columns)}
    shapes: Shapes = {}
    regions: list[Region] = []
    for key in draw(st.lists(st.sampled_from("abc"), min_size=1, unique=True)):
        rows = draw(st.integers(1, 8))
        shapes[key] = (rows, *columns)
        cuts = sorted(draw(st.sets(st.integers(0, rows), min_size=2, max_size=4)))
        regions += [Region(key, start, stop) for start, stop in pairwise(cuts)]
    chosen = draw(st.permutations(regions))[: draw(st.integers(1, len(regions)))]
    return View(tuple(chosen), (sum(r.stop - r.start for r in chosen), *columns)), shapes


@st.composite
def views_of_stacks(draw: st.DrawFn) -> tuple[View, Shapes]:
    """Draw a view of some experts of a tensor (experts, first, second), or of some values of each of their rows."""
    experts, first, second = draw(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6)))
    start = draw(st.integers(0, experts - 1))
    count = draw(st.integers(1, experts - start))
    step = draw(st.integers(1, 2))
    places = range(draw(st.integers(0, min(step, second) - 1)), second, step)
    picked = Picked(places, second) if draw(st.booleans()) else None
    width = len(places) if picked else second
    rows = (Region("t", start * first, (start + count) * first),)
    shapes: Shapes = {"t": (experts, first, second)}
    if count == 1 and draw(st.booleans()):
        return View(rows, (width, first), transpose=True, picked=picked), shapes
    return View(rows, (count, first, width), stacked=True, picked=picked), shapes


@given(views(), st.integers(0, 2**16))
@settings(max_examples=300, deadline=None)
def test_adding_changes_what_is_read_by_the_delta_and_nothing_else(drawn: tuple[View, Shapes], seed: int) -> None:
    view, shapes = drawn
    generator = torch.Generator().manual_seed(seed)
    whole_numbers = {"generator": generator, "dtype": torch.float64}
    tensors = {key: torch.randint(-9, 9, shape, **whole_numbers) for key, shape in shapes.items()}
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    seen = view.read(tensors).clone()
    delta = torch.randint(1, 9, view.shape, **whole_numbers)
    view.add(tensors, delta)
    assert seen.shape == view.shape
    assert torch.equal(view.read(tensors), seen + delta)
    changed = sum(int((tensors[key] != before[key]).sum()) for key in tensors)
    assert changed == prod(view.shape)
    sides = view.shape[: 1 + view.stacked], view.shape[1 + view.stacked :]
    assert (view.rows, view.columns) == tuple(map(prod, sides))
    assert view.keys == tuple(dict.fromkeys(region.key for region in view.regions))


def test_reading_follows_the_order_of_the_regions() -> None:
    tensors = {"a": torch.arange(6.0).reshape(3, 2), "b": torch.arange(10.0, 14.0).reshape(2, 2)}
    view = View((Region("b", 1, 2), Region("a", 1, 3), Region("b", 0, 1)), (4, 2))
    assert view.read(tensors).tolist() == [[12, 13], [2, 3], [4, 5], [10, 11]]


def test_a_scalar_is_a_view_of_one_row() -> None:
    view = View((Region("a", 0, 1),), ())
    assert (view.rows, view.columns) == (1, 1)
