"""Block weights: a list of numbers in a prompt, one a block of the network.

Extensions of AUTOMATIC1111 and Forge write them as `lbw=1,0,0.5,…`. The number of values says what they are for.
Facts from hako-mikan/sd-webui-lora-block-weight (12, 17, 20, 26 and 61 values, and the presets) and from
nihedon/sd-webui-lora-block-weight (19 and 57 values).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockList:
    """Describe a list of so many values: what each is for.

    `blocks` are pairs: the block's name in the extensions, and patterns of its modules. `others` are patterns of the
    blocks that the list does not name; the extensions multiply them by 0. `roots` are beginnings of names that only
    networks have which the list is for, and `network` is what people call these.
    """

    blocks: tuple[tuple[str, tuple[str, ...]], ...]
    others: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    network: str = ""


UNET_ROOTS = ("input_blocks.", "middle_block.", "output_blocks.")
FLUX_ROOTS = ("double_blocks.", "single_blocks.")

_BASE = ("BASE", ("text_encoder.*", "text_encoder_2.*"))
_MIDDLE = ("M00", ("middle_block.*",))


def _unet(entering: tuple[int, ...], leaving: tuple[int, ...]) -> BlockList:
    """List the blocks of a UNet: BASE, those that go in, the middle one, and those that come out."""
    inputs = tuple((f"IN{number:02}", (f"input_blocks.{number}.*",)) for number in entering)
    outputs = tuple((f"OUT{number:02}", (f"output_blocks.{number}.*",)) for number in leaving)
    return BlockList(
        (_BASE, *inputs, _MIDDLE, *outputs),
        ("input_blocks.*", "output_blocks.*"),
        UNET_ROOTS,
        "Stable Diffusion or SDXL",
    )


def _flux(*blocks: tuple[str, tuple[str, ...]]) -> BlockList:
    return BlockList(blocks, roots=FLUX_ROOTS, network="Flux")


_DOUBLE = tuple((f"D{number:02}", (f"double_blocks.{number}.*",)) for number in range(19))
_SINGLE = tuple((f"S{number:02}", (f"single_blocks.{number}.*",)) for number in range(38))
_TRIPLES = tuple(
    (
        f"FL{number:02}",
        (f"double_blocks.{number}.*", f"single_blocks.{2 * number}.*", f"single_blocks.{2 * number + 1}.*"),
    )
    for number in range(19)
)
_FLUX_ENDS = ("img_in", "txt_in", "time_in", "vector_in", "guidance_in")

LISTS: Mapping[int, BlockList] = {
    12: _unet((4, 5, 7, 8), (0, 1, 2, 3, 4, 5)),
    17: _unet((1, 2, 4, 5, 7, 8), (3, 4, 5, 6, 7, 8, 9, 10, 11)),
    20: _unet(tuple(range(9)), tuple(range(9))),
    26: _unet(tuple(range(12)), tuple(range(12))),
    19: _flux(*_TRIPLES),
    38: _flux(*_SINGLE),
    57: _flux(*_DOUBLE, *_SINGLE),
    61: _flux(
        ("CLIP", ("text_encoder.*",)),
        ("T5", ("text_encoder_2.*",)),
        ("IN", tuple(pattern for name in _FLUX_ENDS for pattern in (name, f"{name}.*"))),
        *_DOUBLE,
        *_SINGLE,
        ("OUT", ("final_layer.*",)),
    ),
}
"""Number of values -> what they are for."""


def counts_by_network() -> dict[str, list[int]]:
    """Return the numbers of values that there are for each sort of network."""
    counts: dict[str, list[int]] = {}
    for count, blocks in LISTS.items():
        counts.setdefault(blocks.network, []).append(count)
    return counts


def one_of_numbers(numbers: Sequence[int]) -> str:
    """Write numbers as a choice: 12, 17 or 20."""
    *most, last = map(str, sorted(numbers))
    return f"{', '.join(most)} or {last}" if most else last


def _shallow_and_deep(*parts: int) -> tuple[float, ...]:
    """Spread five factors over 17 values: BASE, IN01 to IN04, IN05 to IN08, M00, OUT03 to OUT06, OUT07 to OUT11."""
    return tuple(float(part) for part, count in zip(parts, (1, 3, 3, 1, 4, 5), strict=True) for _ in range(count))


PRESETS: Mapping[str, tuple[float, ...]] = {
    "NONE": (0.0,) * 17,
    "ALL": (1.0,) * 17,
    "INS": _shallow_and_deep(1, 1, 0, 0, 0, 0),
    "IND": _shallow_and_deep(1, 0, 1, 0, 0, 0),
    "INALL": _shallow_and_deep(1, 1, 1, 0, 0, 0),
    "MIDD": _shallow_and_deep(1, 0, 1, 1, 1, 0),
    "OUTD": _shallow_and_deep(1, 0, 0, 0, 1, 0),
    "OUTS": _shallow_and_deep(1, 0, 0, 0, 0, 1),
    "OUTALL": _shallow_and_deep(1, 0, 0, 0, 1, 1),
    "ALL0.5": (0.5,) * 17,
    "FLUXALL": (1.0,) * 61,
}
"""The presets that come with the extension -> their values."""


def factors(values: tuple[float, ...]) -> Iterator[tuple[str, float]]:
    """Yield (pattern, factor) in the order in which they are to be tried: those of named blocks, then the others."""
    blocks = LISTS[len(values)]
    for (_, patterns), value in zip(blocks.blocks, values, strict=True):
        yield from ((pattern, value) for pattern in patterns)
    yield from ((pattern, 0.0) for pattern in blocks.others)
