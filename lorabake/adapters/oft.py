"""OFT and BOFT: blocks of outputs or inputs are rotated. W' = R·W or W·R, R orthogonal by Cayley's map of a skew Q.

LyCORIS and kohya rotate outputs. Diagonal OFT (`oft_blocks`, (n, b, b)): Q = X − Xᵀ, R = (I + Q)(I − Q)⁻¹, and each
block of b rows becomes Rᵀ·W. BOFT (`oft_blocks`, (m, n, b, b)): m rounds of R·W on rows that a butterfly of stride
2^i·b/2 brings together. alpha is a constraint: ‖Q‖ of all blocks together is at most alpha × out; kohya takes alpha 0
for no rotation, LyCORIS for no constraint. `rescale` (out) multiplies the rows afterwards. kohya's OFT for Flux has a
list (`oft_blocks.0`, …), one for each part of a fused layer, or one for a layer of one part; each turns its own rows
and has its own constraint. `oft_diag`, of 2023, holds the blocks R themselves.
PEFT rotates inputs. OFT (`oft_R`, (n, b·(b−1)/2)): Q from the strict upper triangle, W' = W·Rᵀ with
R = (I − Q)(I + Q)⁻¹, or, with `use_cayley_neumann`, the first terms of the series of (I + Q)(I − Q)⁻¹, which is the
opposite rotation; the last term counts half since PEFT 0.18. BOFT (`boft_R`, (m, n, b, b)): Q = (X − Xᵀ)/2, R as in
OFT; in round i a block turns two halves (of b/2 columns) that lie 2^i halves apart; then rows are scaled by `boft_s`.
OneTrainer's OFT (`oft_R` and a marker `scaled_oft`): PEFT's with the series of five terms and Q/(2·√(b − 1)).
Qiu et al. 2023 (arXiv 2306.07280); Liu et al. 2023, BOFT (arXiv 2311.06243); Qiu et al. 2025 (arXiv 2506.19847).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from lorabake.adapters.kind import OF_KOHYA, Kind, Settings, Shapes, Tensors, Terms, fits, matrix, whole_number
from lorabake.keymap.peft import WHO_TRAINED, is_before

if TYPE_CHECKING:
    import torch


MAX_TERMS = 100
"""Terms of a rotation's series; PEFT takes 5 unless it is told otherwise."""


def cayley(skew: torch.Tensor) -> torch.Tensor:
    """Return (I + Q)(I − Q)⁻¹ of skew matrices Q (…, b, b)."""
    import torch

    identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    # The two commute. Where `solve` would fail, no numbers come out, and the bake refuses those by the weight's name.
    turn: torch.Tensor = torch.linalg.solve_ex(identity - skew, identity + skew).result
    return turn


def series(skew: torch.Tensor, terms: int, last: int) -> torch.Tensor:
    """Return I + 2Q + 2Q² + … + last·Q^(terms−1), the series of Cayley's map cut off as PEFT does.

    `last` is 1 since PEFT 0.18, and was 2 before; of one or two terms PEFT makes the same.
    """
    import torch

    total = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device).expand(skew.shape).clone()
    power = skew
    for term in range(1, terms):
        total = total + power * (last if term == terms - 1 and terms > 2 else 2)
        power = power @ skew
    return total


def bounded(skew: torch.Tensor, bound: float) -> torch.Tensor:
    """Shrink Q of all blocks together to the norm `bound` where it is longer."""
    norm = float(skew.norm())
    return skew * (max(bound, 0.0) / norm) if norm > max(bound, 0.0) else skew


class Oft(Kind):
    """Rotate blocks of outputs (LyCORIS's diagonal OFT and BOFT, kohya's OFT)."""

    name = "oft"
    title = "OFT"
    required = frozenset({"oft_blocks"})
    optional = frozenset({"alpha", "rescale"})
    suffixes: ClassVar[tuple[tuple[str, str], ...]] = ((r"\.oft_blocks", "oft_blocks"), (r"\.rescale", "rescale"))
    reads_weight = True
    by_rows = False
    alpha_is_scale = False
    programs: ClassVar[frozenset[str]] = OF_KOHYA - {"forge"}
    dora_in: ClassVar[frozenset[str]] = frozenset({"a1111"})

    def told_title(self, shapes: Shapes) -> str:
        """Tell LyCORIS's BOFT by its rounds."""
        return "BOFT" if len(shapes.get("oft_blocks", ())) == 4 else self.title

    def settings(self, config: Settings | None, module: str, shapes: Shapes) -> Settings:
        """Tell kohya's files by their prefix: they mean something else by alpha 0."""
        return {"kohya": module.startswith("oft_")}

    def meant(self, program: str, shapes: Shapes, weight: tuple[int, ...], strength: float) -> Settings:
        """Take alpha 0 for no bound, as all three do, and put the strength where they do.

        ComfyUI bounds ‖Q‖ by alpha alone; its OFT knows no `rescale`, its BOFT has the strength in each round and
        once more outside. LyCORIS's BOFT has it in each round alone, and `rescale` is whole at any strength.
        """
        read_as: dict[str, object] = {"kohya": False}
        in_rounds = len(shapes["oft_blocks"]) == 4
        if program == "comfyui":
            if in_rounds and "alpha" not in shapes:
                raise ValueError("ComfyUI fails at BOFT without alpha, and leaves it out")
            read_as |= {"bound": 1} | ({"inside": strength} if in_rounds else {"bare": True, "squared": True})
        if program == "lycoris" and ("rescale" in shapes or (in_rounds and strength)):
            read_as |= {"inside": strength, "whole": True}
        return read_as

    def share(self, strength: float, settings: Settings) -> float:
        """Square the strength of ComfyUI's OFT; LyCORIS's is in the rotations already."""
        if settings.get("whole"):
            return 1.0
        return strength * strength if settings.get("squared") else strength

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for square blocks that cover the outputs."""
        shape = shapes["oft_blocks"]
        if len(shape) not in (3, 4) or shape[-1] != shape[-2]:
            return f"its blocks {shape} are no square matrices"
        if not weight or shape[-3] * shape[-1] != weight[0]:
            return f"its blocks turn {shape[-3] * shape[-1]} outputs"
        if len(shape) == 4 and (shape[-1] % 2 or weight[0] % (2 ** shape[0] * (shape[-1] // 2))):
            return f"its {shape[0]} butterfly rounds of blocks of {shape[-1]} do not divide the outputs"
        if "rescale" in shapes and not fits(shapes["rescale"], weight[:1]):
            return f"its rescale is {shapes['rescale']}"
        return None

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Build the rotations (rounds, n, b, b), as they multiply rows."""
        import torch

        blocks = tensors["oft_blocks"]
        skew = blocks - blocks.transpose(-1, -2)
        if "alpha" in tensors:
            bound = float(tensors["alpha"].reshape(-1)[0]) * cast(int, terms.settings.get("bound", terms.shape[0]))
            if bound > 0 or terms.settings["kohya"]:
                skew = bounded(skew, bound)
        turns = cayley(skew)
        if "inside" in terms.settings:
            eye = torch.eye(turns.shape[-1], dtype=turns.dtype, device=turns.device)
            turns = eye + cast(float, terms.settings["inside"]) * (turns - eye)
        found = {"rounds": turns} if turns.dim() == 4 else {"turns": turns.transpose(-1, -2)}
        rescales = "rescale" in tensors and not terms.settings.get("bare")
        return found | ({"rescale": tensors["rescale"]} if rescales else {})

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Rotate all rows, round after round."""
        columns = weight.shape[1]
        if "turns" in tensors:
            turned = tensors["turns"] @ weight.reshape(-1, tensors["turns"].shape[-1], columns)
        else:
            turned = weight
            for number, turns in enumerate(tensors["rounds"]):
                size = turns.shape[-1]
                stride = 2**number * (size // 2)
                near = turned.reshape(-1, 2, stride, columns).transpose(1, 2)
                near = turns @ near.reshape(-1, size, columns)
                turned = near.reshape(-1, stride, 2, columns).transpose(1, 2)
        turned = turned.reshape(weight.shape)
        if "rescale" in tensors:
            turned = turned * tensors["rescale"].reshape(-1, 1)
        return turned - weight


class OldOft(Oft):
    """Turn blocks of outputs by the matrices in the file (kohya's OFT of 2023)."""

    name = "oft_diag"
    required = frozenset({"oft_diag"})
    optional = frozenset({"alpha"})
    suffixes = ((r"\.oft_diag", "oft_diag"),)
    programs = frozenset({"a1111", "lycoris"})

    def meant(self, program: str, shapes: Shapes, weight: tuple[int, ...], strength: float) -> Settings:
        """Leave it at the definition."""
        return {}

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for square blocks that cover the outputs."""
        shape = shapes["oft_diag"]
        if len(shape) == 3 and shape[1] == shape[2] and weight and shape[0] * shape[1] == weight[0]:
            return None
        return f"its blocks are {shape}"

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Take the blocks, as they multiply rows."""
        return {"turns": tensors["oft_diag"].transpose(1, 2)}


PARTS = tuple(f"oft_blocks_{part}" for part in range(4))


class PartedOft(Kind):
    """Rotate blocks of outputs, part by part of a fused layer (kohya's OFT for Flux)."""

    name = "oft_parts"
    title = "OFT"
    required = frozenset({PARTS[0], "alpha"})
    optional = frozenset(PARTS[1:])
    suffixes = tuple((rf"\.oft_blocks\.{number}", part) for number, part in enumerate(PARTS))
    reads_weight = True
    by_rows = False
    alpha_is_scale = False
    programs = frozenset()

    def claims(self, slots: frozenset[str]) -> frozenset[str]:
        """Ask for parts without a gap."""
        there = slots & frozenset(PARTS)
        return super().claims(slots) if there == frozenset(PARTS[: len(there)]) else frozenset()

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for square blocks that cover the outputs, one part after the other."""
        blocks = [shapes[part] for part in PARTS if part in shapes]
        if any(len(shape) != 3 or shape[1] != shape[2] for shape in blocks):
            return f"its blocks {', '.join(map(str, blocks))} are no square matrices"
        turned = sum(shape[0] * shape[1] for shape in blocks)
        return None if weight and turned == weight[0] else f"its blocks turn {turned} outputs"

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Build the rotations of each part, as they multiply rows."""
        alpha, found = float(tensors["alpha"].reshape(-1)[0]), {}
        for part in PARTS:
            if part in tensors:
                blocks = tensors[part]
                skew = bounded(blocks - blocks.transpose(1, 2), alpha * blocks.shape[0] * blocks.shape[1])
                found[part] = cayley(skew).transpose(1, 2)
        return found

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Rotate all rows."""
        change, start = -weight, 0
        for turns in tensors.values():
            own = slice(start, start + turns.shape[0] * turns.shape[1])
            change[own] += (turns @ weight[own].reshape(len(turns), turns.shape[1], -1)).flatten(0, 1)
            start = own.stop
        return change


class PeftOft(Kind):
    """Rotate blocks of inputs (PEFT's OFT, OneTrainer's)."""

    name = "oft_peft"
    title = "OFT"
    required = frozenset({"oft_R"})
    reads_weight = True
    whole_in = frozenset({"peft"})
    optional = frozenset({"scaled_oft"})
    markers = optional
    suffixes = ((r"\.oft_R(?:\.[^.]+)?\.weight", "oft_R"), (r"\.(?:oft_R\.)?scaled_oft", "scaled_oft"))
    peft_type = "OFT"
    peft_fields = frozenset(
        {"r", "oft_block_size", "use_cayley_neumann", "num_cayley_neumann_terms", "block_share", "rank_pattern"}
        | {"coft", "eps", "module_dropout", "fan_in_fan_out", "bias", "init_weights", "alpha_pattern"}
    )

    def settings(self, config: Settings | None, module: str, shapes: Shapes) -> Settings:
        """Choose the rotation: the tensors alone do not tell which of two opposite ones is meant."""
        if "scaled_oft" in shapes:
            return {"terms": 5, "scaled": True}
        if config is None:
            raise ValueError("no adapter_config.json says use_cayley_neumann: the two readings turn opposite ways")
        if config.get("coft"):
            raise ValueError("coft is set: PEFT projects such rotations once more whenever it loads them")
        if "use_cayley_neumann" not in config:
            raise ValueError("its adapter_config.json, of an older PEFT, does not say use_cayley_neumann")
        count = config.get("num_cayley_neumann_terms", 5)
        if type(count) is not int or not 1 <= count <= MAX_TERMS:
            raise ValueError(f"num_cayley_neumann_terms is {count!r:.50}, and 1 to {MAX_TERMS} are known")
        if not config["use_cayley_neumann"]:
            return {"terms": 0, "scaled": False}
        older = is_before(config, 0, 18, 0)
        if older is None and count > 2:
            raise ValueError(f"the series of PEFT before 0.18 was another: {WHO_TRAINED}")
        if older:
            return {"terms": count, "scaled": False, "whole": True}
        return {"terms": 4 if count == 3 else count, "scaled": False}  # PEFT computes the same for both

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for as many packed triangles as cover the inputs, or for one that all blocks share."""
        shape, columns = shapes["oft_R"], matrix(weight)[1]
        size = _block_size(shape[-1]) if len(shape) == 2 else 0
        if not size or columns % size or shape[0] not in (1, columns // size):
            return f"its packed rotations {shape} do not cover {columns} inputs"
        return None

    def configured(self, config: Settings, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for one triangle a block, or for one alone where blocks share it; for blocks of the size that is named.

        Where r or the size does not divide the inputs, PEFT takes another.
        """
        columns, size = matrix(weight)[1], _block_size(shapes["oft_R"][1])
        named, count = whole_number(config, "oft_block_size"), whole_number(config, "r")
        if named is not None and columns % named == 0:
            size = named
        elif named is None and count is not None and columns % count == 0:
            size = columns // count
        return {"oft_R": (1 if config.get("block_share") else columns // size, size * (size - 1) // 2)}

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Unpack the triangles and build what multiplies blocks of columns from the right."""
        import torch

        packed = tensors["oft_R"]
        size = _block_size(packed.shape[1])
        rows, columns = torch.triu_indices(size, size, 1, device=packed.device)
        skew = packed.new_zeros(packed.shape[0], size, size)
        skew[:, rows, columns] = packed
        skew = skew - skew.transpose(1, 2)
        if terms.settings["scaled"]:
            skew = skew / (2 * (size - 1) ** 0.5)
        count = cast(int, terms.settings["terms"])
        last = 2 if terms.settings.get("whole") else 1
        return {"turns": (series(skew, count, last) if count else cayley(-skew)).transpose(1, 2)}

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Rotate the blocks of these rows."""
        return _turn_inputs(weight, tensors["turns"]) - weight


_MIXED_UP = "PEFT before 0.14 mixed up the values of convolutions"


def _is_of_convolution(shapes: Shapes) -> bool:
    """Tell by its scales, (1, outputs), that a layer is a convolution; a linear one has (outputs, 1)."""
    return shapes["boft_s"][0] == 1 != shapes["boft_s"][1]


class PeftBoft(Kind):
    """Rotate blocks of inputs and scale outputs (PEFT's BOFT)."""

    name = "boft_peft"
    title = "BOFT"
    required = frozenset({"boft_R", "boft_s"})
    reads_weight = True
    whole_in = frozenset({"peft"})
    suffixes = ((r"\.boft_R", "boft_R"), (r"\.boft_s", "boft_s"))
    peft_type = "BOFT"
    peft_fields = frozenset(
        {"boft_block_size", "boft_block_num", "boft_n_butterfly_factor", "boft_dropout", "fan_in_fan_out", "bias"}
        | {"init_weights"}
    )

    def settings(self, config: Settings | None, module: str, shapes: Shapes) -> Settings:
        """Refuse what PEFT before 0.14 trained of convolutions."""
        if _is_of_convolution(shapes) and is_before(config or {}, 0, 14, 0):
            raise ValueError(f"{_MIXED_UP}\nMerge it with the PEFT that trained it.")
        return {}

    def doubt(self, config: Settings | None, shapes: Shapes) -> str:
        """Tell where nothing says that it is newer."""
        return _MIXED_UP if _is_of_convolution(shapes) and is_before(config or {}, 0, 14, 0) is None else ""

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for square blocks that cover the inputs, in pairs for each further round, and one scale an output."""
        shape = shapes["boft_R"]
        if len(shape) != 4 or not shape[0] or shape[2] != shape[3] or shape[1] * shape[2] != matrix(weight)[1]:
            return f"its blocks {shape} do not cover {matrix(weight)[1]} inputs"
        if shape[0] > 1 and (shape[2] % 2 or shape[1] % 2 ** (shape[0] - 1)):
            return f"its {shape[0]} butterfly rounds do not divide {shape[1]} blocks of {shape[2]}"
        wanted = (weight[0], 1) if len(weight) == 2 else (1, weight[0])
        return None if shapes["boft_s"] == wanted else f"its boft_s is {shapes['boft_s']}, not {wanted}"

    def configured(self, config: Settings, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for blocks of the size, or of the number, that is named, and for as many rounds.

        One round may be there in the place of more: without CUDA PEFT trains no more.
        """
        columns, rounds = matrix(weight)[1], whole_number(config, "boft_n_butterfly_factor")
        size, count = whole_number(config, "boft_block_size"), whole_number(config, "boft_block_num")
        if not rounds or bool(size) == bool(count):
            return {}
        size = size or columns // (count or 1)
        return {"boft_R": (1 if shapes["boft_R"][0] == 1 else rounds, columns // size, size, size)}

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Build what multiplies blocks of columns from the right, round by round."""
        blocks = tensors["boft_R"]
        skew = (blocks - blocks.transpose(-1, -2)) / 2
        return {"rounds": cayley(-skew).transpose(-1, -2), "lengths": tensors["boft_s"].reshape(-1, 1)}

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Rotate and scale these rows."""
        first, *others = tensors["rounds"]
        turned = _turn_inputs(weight, first)
        for number, turns in enumerate(others, 1):
            apart = turned.reshape(len(turned), -1, 2, 2**number, turns.shape[-1] // 2)
            near = _turn_inputs(apart.transpose(2, 3).reshape(weight.shape), turns)
            turned = near.reshape(apart.transpose(2, 3).shape).transpose(2, 3).reshape(weight.shape)
        return turned * tensors["lengths"][rows] - weight


def _block_size(packed: int) -> int:
    """Return b where b·(b − 1)/2 = packed, or 0."""
    size = round((1 + (1 + 8 * packed) ** 0.5) / 2)
    return size if size > 1 and size * (size - 1) // 2 == packed else 0


def _turn_inputs(weight: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Multiply each block of columns from the right by its matrix (b, b), or by the one that they share."""
    blocks = weight.reshape(weight.shape[0], -1, turns.shape[-1]).transpose(0, 1)
    return (blocks @ turns).transpose(0, 1).reshape(weight.shape)


KINDS = (Oft(), PartedOft(), OldOft(), PeftOft(), PeftBoft())
