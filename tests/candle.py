"""What candle's builders ask of a checkpoint: names and shapes, by the settings of each model.

Facts taken from candle's source (huggingface/candle at 2a13b0f3ff62f7e67013597f2996f764c5735e21): the modules
`stable_diffusion` (mod, unet_2d, unet_2d_blocks, attention, resnet, embeddings, vae, clip) and `flux` (model,
autoencoder) of candle-transformers, and candle-core's `safetensors`. A builder takes what it names, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Shapes = dict[str, tuple[int, ...]]
Asked = Iterator[tuple[str, tuple[int, ...]]]

DTYPES = {"U8", "U16", "U32", "I16", "I32", "I64", "BF16", "F16", "F32", "F64", "F8_E4M3"}
"""Dtypes that candle reads and converts to the one that the program computes in."""


@dataclass(frozen=True)
class UNet:
    """A UNet's levels: (channels, number of transformers in each attention, or None for a level without)."""

    levels: tuple[tuple[int, int | None], ...]
    context: int
    linear: bool
    layers: int = 2
    inputs: int = 4


@dataclass(frozen=True)
class Clip:
    width: int
    inner: int
    layers: int
    words: int = 49408
    length: int = 77


@dataclass(frozen=True)
class Flux:
    inputs: int = 64
    vector: int = 768
    context: int = 4096
    width: int = 3072
    ratio: int = 4
    heads: int = 24
    double: int = 19
    single: int = 38
    guidance: bool = True


V1_5 = UNet(((320, 1), (640, 1), (1280, 1), (1280, None)), 768, linear=False)
V2_1 = UNet(((320, 1), (640, 1), (1280, 1), (1280, None)), 1024, linear=True)
SDXL = UNet(((320, None), (640, 2), (1280, 10)), 2048, linear=True)
CLIP_V1_5, CLIP_V2_1 = Clip(768, 3072, 12), Clip(1024, 4096, 23)
CLIP_SDXL, CLIP_SDXL_2 = Clip(768, 3072, 12), Clip(1280, 5120, 32)
FLUX_DEV, FLUX_SCHNELL = Flux(), Flux(guidance=False)


def _linear(name: str, into: int, out: int, *, bias: bool = True) -> Asked:
    yield f"{name}.weight", (out, into)
    if bias:
        yield f"{name}.bias", (out,)


def _conv(name: str, into: int, out: int, size: int = 3) -> Asked:
    yield f"{name}.weight", (out, into, size, size)
    yield f"{name}.bias", (out,)


def _norm(name: str, width: int) -> Asked:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _resnet(name: str, into: int, out: int, time: int | None, shortcut: str = "conv_shortcut") -> Asked:
    yield from _norm(f"{name}.norm1", into)
    yield from _conv(f"{name}.conv1", into, out)
    yield from _norm(f"{name}.norm2", out)
    yield from _conv(f"{name}.conv2", out, out)
    if into != out:
        yield from _conv(f"{name}.{shortcut}", into, out, 1)
    if time is not None:
        yield from _linear(f"{name}.time_emb_proj", time, out)


def _transformer(name: str, width: int, depth: int, unet: UNet) -> Asked:
    yield from _norm(f"{name}.norm", width)
    for end in ("proj_in", "proj_out"):
        yield from _linear(f"{name}.{end}", width, width) if unet.linear else _conv(f"{name}.{end}", width, width, 1)
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for attention, context in (("attn1", width), ("attn2", unet.context)):
            yield from _linear(f"{block}.{attention}.to_q", width, width, bias=False)
            yield from _linear(f"{block}.{attention}.to_k", context, width, bias=False)
            yield from _linear(f"{block}.{attention}.to_v", context, width, bias=False)
            yield from _linear(f"{block}.{attention}.to_out.0", width, width)
        yield from _linear(f"{block}.ff.net.0.proj", width, 8 * width)
        yield from _linear(f"{block}.ff.net.2", 4 * width, width)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _norm(f"{block}.{norm}", width)


def unet(asked: UNet) -> Shapes:
    """Return what the builder of a UNet asks for."""
    return dict(_unet(asked))


def _unet(asked: UNet) -> Asked:
    levels, last = asked.levels, asked.levels[-1]
    time = 4 * levels[0][0]
    yield from _conv("conv_in", asked.inputs, levels[0][0])
    yield from _linear("time_embedding.linear_1", levels[0][0], time)
    yield from _linear("time_embedding.linear_2", time, time)
    before = levels[0][0]
    for number, (width, depth) in enumerate(levels):
        block = f"down_blocks.{number}"
        for layer in range(asked.layers):
            yield from _resnet(f"{block}.resnets.{layer}", before if layer == 0 else width, width, time)
            if depth is not None:
                yield from _transformer(f"{block}.attentions.{layer}", width, depth, asked)
        if number < len(levels) - 1:
            yield from _conv(f"{block}.downsamplers.0.conv", width, width)
        before = width
    yield from _resnet("mid_block.resnets.0", last[0], last[0], time)
    yield from _transformer("mid_block.attentions.0", last[0], last[1] or 1, asked)
    yield from _resnet("mid_block.resnets.1", last[0], last[0], time)
    for number, (width, depth) in enumerate(reversed(levels)):
        block, place = f"up_blocks.{number}", len(levels) - 1 - number
        after = levels[max(place - 1, 0)][0]
        for layer in range(asked.layers + 1):
            skipped = after if layer == asked.layers else width
            yield from _resnet(f"{block}.resnets.{layer}", (before if layer == 0 else width) + skipped, width, time)
            if depth is not None:
                yield from _transformer(f"{block}.attentions.{layer}", width, depth, asked)
        if place:
            yield from _conv(f"{block}.upsamplers.0.conv", width, width)
        before = width
    yield from _norm("conv_norm_out", levels[0][0])
    yield from _conv("conv_out", levels[0][0], 4)


def vae(latents: int = 4, widths: tuple[int, ...] = (128, 256, 512, 512), layers: int = 2) -> Shapes:
    """Return what the builder of Stable Diffusion's VAE asks for."""
    return dict(_vae(latents, widths, layers))


def _vae(latents: int, widths: tuple[int, ...], layers: int) -> Asked:
    def middle(name: str) -> Asked:
        yield from _resnet(f"{name}.resnets.0", widths[-1], widths[-1], None)
        yield from _norm(f"{name}.attentions.0.group_norm", widths[-1])
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from _linear(f"{name}.attentions.0.{part}", widths[-1], widths[-1])
        yield from _resnet(f"{name}.resnets.1", widths[-1], widths[-1], None)

    for side, outer, order in (("encoder", widths[0], widths), ("decoder", widths[-1], widths[::-1])):
        kind, sampler = ("down_blocks", "downsamplers") if side == "encoder" else ("up_blocks", "upsamplers")
        before = outer
        yield from _conv(f"{side}.conv_in", 3 if side == "encoder" else latents, outer)
        for number, width in enumerate(order):
            for layer in range(layers + (side == "decoder")):
                name = f"{side}.{kind}.{number}.resnets.{layer}"
                yield from _resnet(name, before if layer == 0 else width, width, None)
            if number < len(order) - 1:
                yield from _conv(f"{side}.{kind}.{number}.{sampler}.0.conv", width, width)
            before = width
        yield from middle(f"{side}.mid_block")
        yield from _norm(f"{side}.conv_norm_out", order[-1])
        yield from _conv(f"{side}.conv_out", order[-1], 2 * latents if side == "encoder" else 3)
    yield from _conv("quant_conv", 2 * latents, 2 * latents, 1)
    yield from _conv("post_quant_conv", latents, latents, 1)


def clip(asked: Clip) -> Shapes:
    """Return what the builder of a CLIP text encoder asks for."""
    return dict(_clip(asked))


def _clip(asked: Clip) -> Asked:
    yield "text_model.embeddings.token_embedding.weight", (asked.words, asked.width)
    yield "text_model.embeddings.position_embedding.weight", (asked.length, asked.width)
    for number in range(asked.layers):
        layer = f"text_model.encoder.layers.{number}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{part}", asked.width, asked.width)
        yield from _norm(f"{layer}.layer_norm1", asked.width)
        yield from _linear(f"{layer}.mlp.fc1", asked.width, asked.inner)
        yield from _linear(f"{layer}.mlp.fc2", asked.inner, asked.width)
        yield from _norm(f"{layer}.layer_norm2", asked.width)
    yield from _norm("text_model.final_layer_norm", asked.width)


def flux(asked: Flux) -> Shapes:
    """Return what the builder of Flux asks for."""
    return dict(_flux(asked))


def _flux(asked: Flux) -> Asked:
    width, inner, head = asked.width, asked.ratio * asked.width, asked.width // asked.heads

    def norms(name: str) -> Asked:
        yield f"{name}.query_norm.scale", (head,)
        yield f"{name}.key_norm.scale", (head,)

    yield from _linear("img_in", asked.inputs, width)
    yield from _linear("txt_in", asked.context, width)
    embedders = {"time_in": 256, "vector_in": asked.vector} | ({"guidance_in": 256} if asked.guidance else {})
    for name, into in embedders.items():
        yield from _linear(f"{name}.in_layer", into, width)
        yield from _linear(f"{name}.out_layer", width, width)
    for number in range(asked.double):
        for stream in ("img", "txt"):
            block = f"double_blocks.{number}.{stream}"
            yield from _linear(f"{block}_mod.lin", width, 6 * width)
            yield from _linear(f"{block}_attn.qkv", width, 3 * width)
            yield from norms(f"{block}_attn.norm")
            yield from _linear(f"{block}_attn.proj", width, width)
            yield from _linear(f"{block}_mlp.0", width, inner)
            yield from _linear(f"{block}_mlp.2", inner, width)
    for number in range(asked.single):
        block = f"single_blocks.{number}"
        yield from _linear(f"{block}.linear1", width, 3 * width + inner)
        yield from _linear(f"{block}.linear2", width + inner, width)
        yield from norms(f"{block}.norm")
        yield from _linear(f"{block}.modulation.lin", width, 3 * width)
    yield from _linear("final_layer.linear", width, asked.inputs)
    yield from _linear("final_layer.adaLN_modulation.1", width, 2 * width)


def flux_vae(latents: int = 16, width: int = 128, factors: tuple[int, ...] = (1, 2, 4, 4), layers: int = 2) -> Shapes:
    """Return what the builder of Flux's VAE asks for: the names of its makers."""
    return dict(_flux_vae(latents, [width * factor for factor in factors], layers))


def _flux_vae(latents: int, widths: list[int], layers: int) -> Asked:
    def middle(name: str) -> Asked:
        yield from _resnet(f"{name}.block_1", widths[-1], widths[-1], None)
        for part in ("q", "k", "v", "proj_out"):
            yield from _conv(f"{name}.attn_1.{part}", widths[-1], widths[-1], 1)
        yield from _norm(f"{name}.attn_1.norm", widths[-1])
        yield from _resnet(f"{name}.block_2", widths[-1], widths[-1], None)

    yield from _conv("encoder.conv_in", 3, widths[0])
    before = widths[0]
    for level, width in enumerate(widths):
        for layer in range(layers):
            yield from _resnet(f"encoder.down.{level}.block.{layer}", before, width, None, "nin_shortcut")
            before = width
        if level < len(widths) - 1:
            yield from _conv(f"encoder.down.{level}.downsample.conv", width, width)
    yield from middle("encoder.mid")
    yield from _norm("encoder.norm_out", before)
    yield from _conv("encoder.conv_out", before, 2 * latents)
    yield from _conv("decoder.conv_in", latents, widths[-1])
    yield from middle("decoder.mid")
    for level in reversed(range(len(widths))):
        for layer in range(layers + 1):
            yield from _resnet(f"decoder.up.{level}.block.{layer}", before, widths[level], None, "nin_shortcut")
            before = widths[level]
        if level:
            yield from _conv(f"decoder.up.{level}.upsample.conv", before, before)
    yield from _norm("decoder.norm_out", before)
    yield from _conv("decoder.conv_out", before, 3)
