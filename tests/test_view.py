"""Views: which rows of which tensors are which rows of a module."""

from __future__ import annotations

import torch

from lorabake.keymap.view import Picked, Region, Span, View

FUSED = View((Region("a", 4, 8), Region("b", 0, 3), Region("a", 0, 2)), (9, 5))


def test_spans_pair_the_rows_of_tensors_with_those_of_the_module() -> None:
    assert [*FUSED.spans()] == [
        Span("a", slice(4, 8), slice(0, 4)),
        Span("b", slice(0, 3), slice(4, 7)),
        Span("a", slice(0, 2), slice(7, 9)),
    ]


def test_spans_of_one_tensor_keep_their_place_in_the_module() -> None:
    assert [*FUSED.spans("b")] == [Span("b", slice(0, 3), slice(4, 7))]
    assert [span.own for span in FUSED.spans("a")] == [slice(0, 4), slice(7, 9)]
    assert not [*FUSED.spans("c")]


def test_spans_read_what_the_view_reads() -> None:
    tensors = {"a": torch.arange(40.0).view(8, 5), "b": torch.arange(100.0, 115).view(3, 5)}
    module = torch.zeros(FUSED.shape)
    for span in FUSED.spans():
        module[span.own] = tensors[span.key][span.stored]
    assert torch.equal(module, FUSED.read(tensors))


def test_a_transposed_view_has_columns_of_the_module() -> None:
    view = View((Region("a", 2, 4),), (5, 2), transpose=True)
    assert [*view.spans()] == [Span("a", slice(2, 4), slice(0, 2))]


def test_a_stack_of_experts_counts_the_rows_of_all() -> None:
    view = View((Region("a", 12, 24),), (3, 4, 5), stacked=True, picked=Picked(range(0, 10, 2), 10))
    assert [*view.spans()] == [Span("a", slice(12, 24), slice(0, 12))]


def test_a_span_is_cut_to_the_rows_that_are_asked_for() -> None:
    span = Span("a", slice(4, 8), slice(10, 14))
    assert span.cut(0, 20) == span
    assert span.cut(5, 7) == Span("a", slice(5, 7), slice(11, 13))
    assert span.cut(0, 6) == Span("a", slice(4, 6), slice(10, 12))
    assert span.cut(8, 9) is None
    assert span.cut(0, 4) is None
