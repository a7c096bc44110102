"""What configurations in compressed-tensors' words say of the weights of whole models, for formats that heed it."""

from __future__ import annotations

from collections.abc import Iterator

from lorabake.codecs.codec import Says


def groups(options: Says) -> list[dict[str, object]]:
    """Return the groups that compressed-tensors tells apart, in an object or in a list."""
    found = options.get("config_groups")
    listed = [*found.values()] if isinstance(found, dict) else found
    return [group for group in listed if isinstance(group, dict)] if isinstance(listed, list) else []


def bits(options: Says, kind: str) -> Iterator[object]:
    """Yield how many bits compressed-tensors says that weights of a kind have."""
    for group in groups(options):
        weights = group.get("weights")
        if not isinstance(weights, dict) or "pack" in str(group.get("format")):
            continue
        if weights.get("type", "int") == kind:
            yield weights.get("num_bits", 8)


def blocks(options: Says) -> Iterator[tuple[int, int]]:
    """Yield the sizes of blocks, down and across, that statements name."""
    weights = [said for group in groups(options) if isinstance(said := group.get("weights"), dict)]
    found = [options.get("weight_block_size")]
    found += [said.get("block_structure") for said in weights]
    found += [[1, said.get("group_size")] for said in weights]
    for block in found:
        sizes = block.split("x") if isinstance(block, str) else block
        if isinstance(sizes, (list, tuple)) and len(sizes) == 2 and all(str(size).isdigit() for size in sizes):
            yield int(sizes[0]), int(sizes[1])


def powers_of_two(value: object) -> bool:
    """Tell whether a statement promises, at any depth, that the scales of weights are powers of two (E8M0)."""
    if not isinstance(value, dict):
        return False
    named = (value.get(option) for option in ("scale_fmt", "scale_format", "scale_dtype"))
    told = any(str(name).lower().endswith(("e8m0", "e8m0fnu", "uint8")) for name in named)
    flowing = {"input_activations", "output_activations", "kv_cache_scheme"}
    return told or any(powers_of_two(said) for key, said in value.items() if key not in flowing)
