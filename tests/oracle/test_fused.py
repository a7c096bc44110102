"""Fused projections against diffusers: what `fuse_projections` joins, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.models.attention_processor import Attention  # noqa: E402
from diffusers.models.transformers.transformer_flux import FluxAttention  # noqa: E402
from diffusers.models.transformers.transformer_wan import WanAttention  # noqa: E402

from lorabake.keymap.expansion import KeyMap  # noqa: E402
from lorabake.keymap.spelling import Spellings  # noqa: E402
from lorabake.sources.family import identify  # noqa: E402
from tests.tables import infos  # noqa: E402

# How an attention is made, and the projections that diffusers joins in it.
MADE: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "self": (lambda: Attention(query_dim=8, heads=2, dim_head=4, bias=True), {"to_qkv"}),
    "cross": (lambda: Attention(query_dim=8, cross_attention_dim=6, heads=2, dim_head=4), {"to_kv"}),
    "added": (
        lambda: Attention(query_dim=8, added_kv_proj_dim=8, heads=2, dim_head=4, context_pre_only=False),
        {"to_qkv", "to_added_qkv"},
    ),
    "Flux": (
        lambda: FluxAttention(query_dim=8, added_kv_proj_dim=8, heads=2, dim_head=4, context_pre_only=False),
        {"to_qkv", "to_added_qkv"},
    ),
    "Wan, self": (lambda: WanAttention(dim=8, heads=2, dim_head=4), {"to_qkv"}),
    "Wan, of pictures": (
        lambda: WanAttention(dim=8, heads=2, dim_head=4, added_kv_proj_dim=8, cross_attention_dim_head=4),
        {"to_kv", "to_added_kv"},
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MADE)
def test_a_fused_projection_shows_the_rows_that_diffusers_joins(name: str) -> None:
    make, due = MADE[name]
    attention = make()
    apart = {f"blocks.0.attn.{key}": tensor.clone() for key, tensor in attention.state_dict().items()}
    tensors = infos({key: tuple(tensor.shape) for key, tensor in apart.items()})
    spelled = Spellings(KeyMap.expand(identify(tensors), tensors))
    attention.fuse_projections()
    fused = {key: tensor for key, tensor in attention.state_dict().items() if f"blocks.0.attn.{key}" not in apart}
    assert {key.partition(".")[0] for key in fused} == due
    for key, tensor in fused.items():
        path, _, parameter = key.rpartition(".")
        (module,) = spelled[f"transformer.blocks.0.attn.{path}"]
        assert torch.equal(module.views[parameter].read(apart), tensor), key
