"""Twenty ways to break a right bake, and what `lorabake verify` must say of each.

Each mutation changes the baked file (or, for the last one, an input) the way a faulty tool would, and leaves the rest
as it is. `docs/verification.md` shows the table; a test keeps it true.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests import builders as b

WIDTH = 32
PLAIN = "lora.safetensors"
DORA = "dora.safetensors"
Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
K = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"
FF = "up_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"
CONV = "down_blocks.1.resnets.0.conv1"
TE_1 = "text_model.encoder.layers.0.mlp.fc1"
TE_2 = "text_model.encoder.layers.1.self_attn"
DORA_Q = "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KEY_Q = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
FUSED = "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight"
UNTOUCHED = "model.diffusion_model.out.2.weight"
IDS = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"


@dataclass(frozen=True)
class Mutation:
    """Name a fault, the check that must fail for it, and words that its finding must hold."""

    fault: str
    check: str
    words: tuple[str, ...]
    apply: Callable[[World], None]
    more: frozenset[str] = frozenset()
    """Other checks that fail with it, and rightly so."""

    quick: str | None = ""
    """The check of the quick stage that fails for it: of the same name unless said otherwise, None for none."""

    @property
    def in_quick(self) -> str | None:
        """Name the check that fails where the quick stage takes the place of weights."""
        return self.check.replace("weights.", "quick.") if self.quick == "" else self.quick


class World:
    """An SDXL of small widths with its LoRAs and its bake, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        base = b.sdxl()
        base[IDS] = torch.arange(6).reshape(1, 6)
        b.save(folder / "base.safetensors", base)
        b.save(folder / "vae.safetensors", b.vae_file("ldm", seed=7))
        self.slots = {
            b.unet_lora(Q): b.lora((WIDTH, WIDTH), seed=1, rank=6, alpha=1.0, size=0.1),
            b.unet_lora(K): b.lora((WIDTH, WIDTH), seed=2, rank=6, alpha=1.0, size=0.1),
            b.unet_lora(FF): b.lora((8 * WIDTH, WIDTH), seed=3, rank=6, alpha=1.0, size=0.1),
            b.unet_lora(CONV): b.lora((WIDTH, WIDTH, 3, 3), seed=4, rank=6, alpha=1.0, size=0.1),
            te("te1", TE_1): b.lora((4 * WIDTH, WIDTH), seed=5, rank=6, alpha=1.0, size=0.1),
            **{
                te("te2", f"{TE_2}.{part}"): b.lora((WIDTH, WIDTH), seed=seed, rank=6, alpha=1.0, size=0.1)
                for seed, part in ((6, "q_proj"), (7, "k_proj"), (8, "v_proj"))
            },
        }
        self.dora = {b.unet_lora(DORA_Q): b.lora((WIDTH, WIDTH), seed=9, rank=6, alpha=1.0, size=0.1, dora="row")}
        b.kohya(folder / PLAIN, self.slots)
        b.kohya(folder / DORA, self.dora)
        self.path = b.bake_sd1(folder, **self.recipe())
        self.recipe_path = b.recipe(folder, **self.recipe())

    def recipe(self) -> dict[str, object]:
        """Return the fields of the recipe that the right bake follows."""
        return {
            "loras": [{"path": PLAIN, "strength": 0.8}, {"path": DORA, "strength": 0.5}],
            "output": {"hash": False},
        }

    # -- ways to break it ------------------------------------------------------------------------------

    def bake_otherwise(self, **files: Mapping[str, b.Slots]) -> None:
        """Put the weights in that the same recipe makes of other LoRA files, header and LoRAs as they were."""
        other = self.folder / "other"
        for name in ("base.safetensors", "vae.safetensors"):
            other.mkdir(exist_ok=True)
            (other / name).write_bytes((self.folder / name).read_bytes())
        b.kohya(other / PLAIN, files.get("plain", self.slots))
        b.kohya(other / DORA, files.get("dora", self.dora))
        self.graft(b.bake_sd1(other, **self.recipe()))

    def bake_by(self, **fields: object) -> None:
        """Put the weights in that another recipe makes."""
        other = self.folder / "by"
        other.mkdir()
        for name in ("base.safetensors", "vae.safetensors", PLAIN, DORA):
            (other / name).write_bytes((self.folder / name).read_bytes())
        self.graft(b.bake_sd1(other, **{**self.recipe(), **fields}))

    def graft(self, other: Path) -> None:
        """Replace the data, which lies in the same order, and keep the header."""
        entries, _, data = b.header(other)
        mine = self.path.read_bytes()
        own, _, old = b.header(self.path)
        assert {key: entry["data_offsets"] for key, entry in entries.items()} == {
            key: entry["data_offsets"] for key, entry in own.items()
        }
        self.path.write_bytes(mine[: len(mine) - len(old)] + data)

    def edit(self, key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change one tensor in place."""
        tensor = change(load_file(self.path)[key].clone())
        entries, _, data = b.header(self.path)
        start, stop = entries[key]["data_offsets"]  # type: ignore[misc]
        raw = bytearray(self.path.read_bytes())
        first = len(raw) - len(data) + start
        raw[first : first + stop - start] = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        self.path.write_bytes(raw)

    def rewrite(self, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        """Write the file anew in the same order, some tensors changed in dtype."""
        entries, metadata, _ = b.header(self.path)
        tensors = load_file(self.path)
        changed = {
            key: change(key, tensors[key]) for key in sorted(entries, key=lambda k: entries[k]["data_offsets"])
        }
        position, text = 0, {"__metadata__": metadata}
        names = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}
        for key, tensor in changed.items():
            stop = position + tensor.nbytes
            offsets = [position, stop]
            text[key] = {"dtype": names[tensor.dtype], "shape": [*tensor.shape], "data_offsets": offsets}  # type: ignore[assignment]
            position = stop
        order = {"__metadata__": metadata} | {key: text[key] for key in entries}
        raw = json.dumps(order).encode()
        raw += b" " * (-len(raw) % 8)
        body = b"".join(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in changed.values())
        self.path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)

    def base(self, key: str) -> torch.Tensor:
        """Return one tensor of the base."""
        return load_file(self.folder / "base.safetensors")[key]


def te(prefix: str, name: str) -> str:
    """Flatten a text encoder's path to kohya's name."""
    return f"lora_{prefix}_" + name.replace(".", "_")


# -- the twenty -------------------------------------------------------------------------------------------


def leave_one_out(world: World) -> None:
    """Forget a module."""
    world.bake_otherwise(plain={name: slots for name, slots in world.slots.items() if name != b.unet_lora(Q)})


def apply_twice(world: World) -> None:
    """Add a LoRA on top of itself."""
    world.bake_by(loras=[{"path": PLAIN, "strength": 0.8}] * 2 + [{"path": DORA, "strength": 0.5}])


def weaken(world: World) -> None:
    """Multiply a strength by 0.9."""
    world.bake_by(loras=[{"path": PLAIN, "strength": 0.72}, {"path": DORA, "strength": 0.5}])


def ignore_alpha(world: World) -> None:
    """Take the scale to be 1."""
    without = {name: {k: t for k, t in slots.items() if k != "alpha"} for name, slots in world.slots.items()}
    world.bake_otherwise(plain=without)


def exchange_factors(world: World) -> None:
    """Take up for down, where the layer is square."""
    slots = world.slots[b.unet_lora(Q)]
    exchanged = {**slots, "up": slots["down"].T, "down": slots["up"].T}
    world.bake_otherwise(plain=world.slots | {b.unet_lora(Q): exchanged})


def exchange_q_and_k(world: World) -> None:
    """Give q what is k's."""
    q, k = b.unet_lora(Q), b.unet_lora(K)
    world.bake_otherwise(plain=world.slots | {q: world.slots[k], k: world.slots[q]})


def wrong_encoder(world: World) -> None:
    """Bake the first text encoder's part into the second."""
    moved = {name.replace("lora_te1_", "lora_te2_"): slots for name, slots in world.slots.items()}
    world.bake_otherwise(plain=moved)


def nudge(world: World) -> None:
    """Move one value of an untouched tensor to its neighbour."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(torch.int16)[0, 0, 0, 0] += 1
        return tensor

    world.edit(UNTOUCHED, change)


def cast_ids(world: World) -> None:
    """Cast the positions with everything else."""
    world.rewrite(lambda key, tensor: tensor.half() if key == IDS else tensor)


def replace_vae(world: World) -> None:
    """Bring another VAE."""
    world.bake_by(vae="vae.safetensors")


def round_twice(world: World) -> None:
    """Round the change to float16, then the sum."""
    delta = b.delta(world.slots[b.unet_lora(Q)], (WIDTH, WIDTH)) * 0.8
    base = world.base(KEY_Q)
    world.edit(KEY_Q, lambda _: base + delta.half())


def forget_norm(world: World) -> None:
    """Take a DoRA for a LoRA."""
    plain = {name: {k: t for k, t in slots.items() if k != "dora_scale"} for name, slots in world.dora.items()}
    world.bake_otherwise(dora=plain)


def spoil(world: World) -> None:
    """Let one value be no number."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[3, 5] = float("nan")
        return tensor

    world.edit(KEY_Q, change)


def truncate(world: World) -> None:
    """Lose the end of the file."""
    world.path.write_bytes(world.path.read_bytes()[:-1000])


def widen(world: World) -> None:
    """Save in another dtype."""
    world.rewrite(lambda key, tensor: tensor.float() if tensor.is_floating_point() else tensor)


def relabel(world: World) -> None:
    """Carry the metadata of another recipe."""
    raw = world.path.read_bytes()
    assert raw.count(rb"\"strength\":0.8") == 1
    world.path.write_bytes(raw.replace(rb"\"strength\":0.8", rb"\"strength\":0.7"))


def shift_rows(world: World) -> None:
    """Cut a fused tensor one row too late."""
    base = world.base(FUSED).double()
    world.edit(FUSED, lambda tensor: (base + (tensor.double() - base).roll(1, 0)).half())


def rslora(world: World) -> None:
    """Divide alpha by the root of the rank."""
    scaled = {name: {**slots, "alpha": slots["alpha"] * 6**0.5} for name, slots in world.slots.items()}
    world.bake_otherwise(plain=scaled)


def change_lora(world: World) -> None:
    """Let a LoRA's file change after the bake."""
    slots = {name: {**each, "up": each["up"] * 1.5} for name, each in world.slots.items()}
    b.kohya(world.folder / PLAIN, slots)


MUTATIONS = (
    Mutation("one module left out", "weights.missing", ("1 of 8 modules", "attn1_to_q"), leave_one_out),
    Mutation("a LoRA applied twice", "weights.twice", ("8 of 8 modules", "applied twice"), apply_twice),
    Mutation("strength × 0.9", "weights.strength", ("8 of 8 modules",), weaken),
    Mutation("alpha ignored", "weights.alpha", ("without its alpha",), ignore_alpha),
    Mutation(
        "up and down exchanged",
        "weights.exchanged",
        ("up and down exchanged", "to_q"),
        exchange_factors,
        quick="quick.values",
    ),
    Mutation("q and k exchanged", "weights.other_module", ("attn1.to_q", "attn1_to_k"), exchange_q_and_k),
    Mutation(
        "text encoder LoRA on the wrong encoder",
        "weights.other_module",
        ("embedders.1", "lora_te1_"),
        wrong_encoder,
        frozenset({"weights.missing"}),
    ),
    Mutation("an untouched value moved by one ulp", "weights.nudged", ("out.2.weight", "1 ulp"), nudge),
    Mutation("position_ids cast", "structure.dtype", ("position_ids", "F16 where I64"), cast_ids),
    Mutation("VAE replaced", "weights.values", ("vae", "another one"), replace_vae),
    Mutation("rounded twice", "weights.rounding", ("to_q", "more than once"), round_twice, quick=None),
    Mutation("DoRA without the norm", "weights.dora", ("DoRA's norm",), forget_norm),
    Mutation("a NaN", "weights.nonfinite", ("[3, 5]", "to_q"), spoil),
    Mutation("file truncated", "structure.file", ("truncated", "1000 bytes"), truncate),
    Mutation("wrong dtype", "structure.dtype", ("F32 where F16",), widen),
    Mutation("metadata of another recipe", "structure.metadata", ("0.7", "0.8"), relabel),
    Mutation("rows of a fused tensor shifted by one", "weights.shifted", ("1 down",), shift_rows),
    Mutation("rsLoRA's scale", "weights.rslora", ("rsLoRA",), rslora),
    Mutation(
        "a LoRA file changed since the bake",
        "weights.input",
        ("changed since the bake",),
        change_lora,
        frozenset({"weights.strength"}),
    ),
)
"""The twentieth, shards under each other's names, needs a sharded bake and has a test of its own."""
