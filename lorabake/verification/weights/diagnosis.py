"""Say what a wrong tensor holds instead: a LoRA left out, at another strength, exchanged, of another module …

Let E be what a checkpoint's tensor differs by from the base, and D_k the change that patch k makes at strength 1.
Least squares over the D_k give the strengths that are there. Since a coarse dtype swallows small changes, they are
compared with the strengths that least squares finds in the rightly rounded result, not with the recipe's. What that
leaves unexplained is held against everything that is known to go wrong in merges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf, isclose, isinf, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lorabake.adapters.dora import MAGNITUDES
from lorabake.adapters.shapes import matrix
from lorabake.keymap.names import patterns
from lorabake.matching.patches import Patch
from lorabake.planning import Plan
from lorabake.reference.arrays import spacing
from lorabake.reference.formulas import FORMULAS
from lorabake.reference.formulas.formula import PlaceOf
from lorabake.reference.formulas.products import PRODUCTS
from lorabake.reference.recompute import Recomputation, rounded
from lorabake.verification.findings import Finding, Status
from lorabake.verification.weights.comparison import Comparison
from lorabake.verification.weights.projections import Sums, signs

if TYPE_CHECKING:
    Matrix = NDArray[np.float32]

NOISE = 9.0
"""Times the energy of one rounding: what a change may leave unexplained, for rounding twice or in a sum."""

NUDGED_ULPS = 4.0
ONE_ULP = 1.001
"""The distance from either neighbour of a value, and float32's own error."""

SHIFTS = (1, -1, 2, -2)
SKETCH = 160
"""Columns of the random sketch that estimates the rank of an unknown change."""


class Cause(StrEnum):
    """Name what is there instead of what is due; the value is the check's name after `weights.`."""

    MISSING = "missing"
    SIGN = "sign"
    TWICE = "twice"
    ALPHA = "alpha"
    RSLORA = "rslora"
    STRENGTH = "strength"
    EXCHANGED = "exchanged"
    OTHER_MODULE = "other_module"
    SHIFTED = "shifted"
    DORA = "dora"
    ROUNDING = "rounding"
    DRAWS = "draws"
    NUDGED = "nudged"
    NONFINITE = "nonfinite"
    OTHER_LORA = "other_lora"
    VALUES = "values"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Say what one tensor holds instead of what is due.

    `lora` and `module` name the patch that is at fault, None for what no patch explains; `factor` is the strength
    found over the strength due; `also` lists causes that would look the same; `detail` completes the sentence.
    """

    key: str
    cause: Cause
    lora: int | None = None
    module: str = ""
    factor: float | None = None
    also: frozenset[Cause] = frozenset()
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Scene:
    """Hold the wrong rows of one tensor: E, the rightly rounded E, each own patch's rows of it and D; the noise.

    With `vectors`, (columns, few), all of them are multiplied by these.
    """

    rows: NDArray[np.int64]
    total_rows: int
    found: Matrix
    due: Matrix
    own: tuple[tuple[Patch, Matrix], ...]
    noise: float
    vectors: Matrix | None = None


class Diagnostician:
    """Explain wrong tensors of one checkpoint."""

    def __init__(self, plan: Plan, recomputation: Recomputation) -> None:
        self.plan, self.recomputation = plan, recomputation
        self._by_shape: dict[tuple[int, int], list[Patch]] = {}
        for patch in plan.patches:
            if patch.kind.name in PRODUCTS:
                self._by_shape.setdefault((patch.view.rows, patch.view.columns), []).append(patch)

    def explain(self, result: Comparison) -> list[Diagnosis]:
        """Return one diagnosis for each patch that is at fault, or one of the tensor as a whole."""
        key = result.target.key
        if result.nonfinite is not None:
            count, row, column = result.nonfinite
            return [Diagnosis(key, Cause.NONFINITE, detail=f"{count} values, the first at [{row}, {column}]")]
        if not result.rows:
            return [Diagnosis(key, Cause.VALUES, detail="other bytes")]
        if isinf(result.worst):
            return [Diagnosis(key, Cause.VALUES, detail="numbers where none are due")]
        nudge = f"{result.wrong} of {result.values} values, by up to {result.worst:.3g} ulp"
        few = result.wrong <= max(4, result.values // 1000)
        if few and result.worst <= NUDGED_ULPS:
            return [Diagnosis(key, Cause.NUDGED if result.is_copy else Cause.ROUNDING, detail=nudge)]
        scene = self._scene(result)
        found = self._by_strengths(key, scene)
        if result.is_drawn and result.worst <= ONE_ULP and (found == [] or not scene.own):
            return [Diagnosis(key, Cause.DRAWS)]
        if found is not None:
            return found or [Diagnosis(key, Cause.ROUNDING, detail=nudge)]
        return [self._by_guess(key, scene, result.base_energy)]

    def explain_sums(self, sums: Sums) -> list[Diagnosis]:
        """Return the same of a tensor whose random sums are off."""
        rows, count = sums.wrong, len(sums.arrived)
        if len(rows) > count // 2:
            rows = np.arange(count)
        own: dict[int, Matrix] = {}
        for product, part in zip(sums.products, sums.parts, strict=True):
            whole = own.setdefault(product.number, np.zeros((count, part.shape[1]), np.float32))
            whole[product.rows] += part / product.patch.strength
        patches = tuple(
            (sums.step.patches[number], whole[rows]) for number, whole in own.items() if whole[rows].any()
        )
        found, due = (each[rows].astype(np.float32) for each in (sums.arrived, sums.due))
        noise = sums.noise * float(sums.units[rows].sum() / sums.units.sum())
        vectors = np.concatenate([*signs(sums.target.key, matrix(sums.target.shape)[1])], axis=1)
        scene, key = _Scene(rows, count, found, due, patches, noise, vectors), sums.target.key
        told = self._by_strengths(key, scene)
        if told is not None:
            return told or [
                Diagnosis(key, Cause.ROUNDING, detail=f"{len(sums.wrong)} of {count} rows{_where(scene)}")
            ]
        return [self._by_guess(key, scene, 0.0)]

    # -- the evidence ----------------------------------------------------------------------------------

    def _scene(self, result: Comparison) -> _Scene:
        rows = np.array(sorted(result.rows))
        count, columns = result.step.matrix(result.target)
        if len(rows) > count // 2:
            rows = np.arange(count)
        place = {row: index for index, row in enumerate(rows.tolist())}
        found, due = (np.zeros((len(rows), columns), np.float32) for _ in range(2))
        own: dict[int, Matrix] = {}
        noise = 0.0
        recomputation = self.recomputation
        for tile in recomputation.tiles(result.step):
            if tile.target.key != result.target.key:
                continue
            here = [row for row in range(tile.start, tile.start + len(tile.base)) if row in place]
            if not here:
                continue
            inner, outer = np.array(here) - tile.start, np.array([place[row] for row in here])
            values = recomputation.files.rows(result.found, tile.start, tile.start + len(tile.base), columns)
            units = spacing(result.dtype, values[inner])
            noise += float(np.square(units).sum()) / (4 if result.is_drawn else 12)
            found[outer] = values[inner] - tile.base[inner]
            as_due = recomputation.rounded(tile, tile.exact) if result.is_drawn else rounded(result.dtype, tile.exact)
            due[outer] = as_due[inner] - tile.base[inner]
            for change in tile.changes:
                delta = own.setdefault(change.number, np.zeros((len(rows), columns), np.float32))
                mine = (inner >= change.rows.start) & (inner < change.rows.stop)
                delta[outer[mine]] = change.delta[inner[mine] - change.rows.start] / change.patch.share
        patches = tuple((result.step.patches[index], delta) for index, delta in sorted(own.items()) if delta.any())
        return _Scene(rows, count, found, due, patches, noise)

    # -- strengths -------------------------------------------------------------------------------------

    def _by_strengths(self, key: str, scene: _Scene) -> list[Diagnosis] | None:
        """Explain E by other strengths of the own patches; None where that leaves more than noise."""
        if not scene.own:
            return None
        deltas = [delta.ravel() for _, delta in scene.own]
        gram = np.array([[_dot(one, other) for other in deltas] for one in deltas])
        found = np.linalg.lstsq(gram, np.array([_dot(each, scene.found.ravel()) for each in deltas]), rcond=1e-9)[0]
        due = np.linalg.lstsq(gram, np.array([_dot(each, scene.due.ravel()) for each in deltas]), rcond=1e-9)[0]
        rest = scene.found.ravel() - sum(weight * delta for weight, delta in zip(found, deltas, strict=True))
        if _dot(rest, rest) > NOISE * scene.noise:
            return None
        spread = scene.noise / scene.found.size * np.diag(np.linalg.pinv(gram))
        diagnoses = []
        for (patch, _), there, wanted, variance in zip(scene.own, found, due, spread, strict=True):
            if not wanted:
                continue
            factor, tolerance = float(there / wanted), 4 * sqrt(variance) / abs(wanted) + 0.004
            if abs(factor - 1) > tolerance:
                causes = list(self._causes(patch, factor, tolerance))
                cause = causes[0] if causes else Cause.STRENGTH
                also = frozenset(causes[1:])
                detail = _where(scene)
                diagnoses.append(Diagnosis(key, cause, patch.lora, patch.module, factor, also, detail))
        return diagnoses

    def _causes(self, patch: Patch, factor: float, tolerance: float) -> Iterator[Cause]:
        rank, scale = patch.kind.rank(patch.shapes), self.recomputation.scale(patch)
        known = {
            Cause.MISSING: 0.0,
            Cause.SIGN: -1.0,
            Cause.ALPHA: 1 / scale if scale else inf,
            Cause.TWICE: 2.0,
            Cause.RSLORA: sqrt(rank),
        }
        for cause, value in known.items():
            if isclose(factor, value, abs_tol=max(tolerance, 0.02 * abs(value))):
                yield cause
        if isclose(factor, 1 / sqrt(rank), rel_tol=0.02) and rank > 1:
            yield Cause.RSLORA

    # -- guesses ---------------------------------------------------------------------------------------

    def _by_guess(self, key: str, scene: _Scene, energy: float) -> Diagnosis:
        """Try what is known to go wrong, one patch at a time, and describe what nothing explains."""
        expected = sum((patch.share * delta for patch, delta in scene.own), np.zeros_like(scene.found))
        for shift in SHIFTS if scene.own else ():
            if len(expected) > 2 * abs(shift) and self._explains(
                scene.found, np.roll(expected, shift, axis=0), scene
            ):
                detail = f"{abs(shift)} {'down' if shift > 0 else 'up'}{_where(scene)}"
                return Diagnosis(key, Cause.SHIFTED, scene.own[0][0].lora, scene.own[0][0].module, detail=detail)
        for patch, delta in scene.own:
            rest = scene.found - (expected - patch.share * delta)
            for cause, other, detail in self._variants(patch, delta, scene):
                if self._explains(rest, other, scene):
                    return Diagnosis(key, cause, patch.lora, patch.module, detail=detail + _where(scene))
            if (stranger := self._stranger(rest, patch, scene)) is not None:
                name = self.plan.sources.loras[stranger.lora].name
                detail = f"it holds the change of {stranger.module}" + (
                    f" of {name}" if stranger.lora != patch.lora else ""
                )
                return Diagnosis(key, Cause.OTHER_MODULE, patch.lora, patch.module, detail=detail)
        if not scene.own and (stranger := self._stranger(scene.found, None, scene)) is not None:
            return Diagnosis(
                key, Cause.OTHER_MODULE, stranger.lora, stranger.module, detail="a tensor that no LoRA has a part in"
            )
        return self._unknown(key, scene, scene.found - expected, energy)

    def _variants(self, patch: Patch, delta: Matrix, scene: _Scene) -> Iterator[tuple[Cause, Matrix, str]]:
        if scene.vectors is not None:
            return
        whole = len(scene.rows) == scene.total_rows
        if patch.has_dora and (plain := self._plain(patch)) is not None and len(patch.view.regions) == 1:
            first = patch.view.regions[0].start
            inside = (scene.rows >= first) & (scene.rows < first + len(plain))
            other = np.zeros_like(delta)
            other[inside] = plain[scene.rows[inside] - first]
            yield Cause.DORA, other, ""
        if whole and delta.shape[0] == delta.shape[1]:
            yield Cause.EXCHANGED, np.ascontiguousarray(delta.T), ""

    def _plain(self, patch: Patch) -> Matrix | None:
        """Return a patch's scaled delta without its DoRA magnitude."""
        if patch.view.transpose:
            return None
        tensors = {slot: array for slot, array in self.recomputation.tensors(patch).items() if slot not in MAGNITUDES}
        place = PlaceOf(slice(0, patch.view.rows), patch.view.shape, patch.settings)
        weight = np.zeros((patch.view.rows, patch.view.columns))
        return FORMULAS[patch.kind.name](tensors, weight, place, self.recomputation.scale(patch)).astype(np.float32)

    def _factors(self, patch: Patch) -> tuple[Matrix, Matrix] | None:
        tensors = self.recomputation.tensors(patch)
        if "up" not in tensors or "mid" in tensors:
            return None
        up, down = tensors["up"], tensors["down"]
        left = up.reshape(len(up), -1) * self.recomputation.scale(patch)
        return left.astype(np.float32), down.reshape(len(down), -1).astype(np.float32)

    def _stranger(self, rest: Matrix, own: Patch | None, scene: _Scene) -> Patch | None:
        """Find another module's change in E, by ⟨E, B·A⟩ = ⟨E·Aᵀ, B⟩; neighbours of the module come first."""
        if own is None and scene.rows[-1] - scene.rows[0] + 1 != len(scene.rows):
            return None
        if own is not None:
            regions = own.view.regions
            if len(regions) != 1 or own.view.transpose:
                return None
            inside = (scene.rows >= regions[0].start) & (scene.rows < regions[0].stop)
            if int(inside.sum()) != own.view.rows:
                return None
            rest = rest[inside]
        energy, columns = _dot(rest, rest), rest.shape[1] if scene.vectors is None else len(scene.vectors)
        name = own.module if own else ""
        candidates = sorted(self._by_shape.get((len(rest), columns), []), key=lambda each: -_alike(each.module, name))
        for patch in candidates:
            if own is not None and (patch.lora, patch.module) == (own.lora, own.module):
                continue
            factors = self._factors(patch)
            if factors is None:
                continue
            up, down = factors
            if len(up) != len(rest):
                continue
            if scene.vectors is not None:
                other = up @ (down @ scene.vectors)
                inner, size = _dot(rest, other), _dot(other, other)
            else:
                inner, size = _dot(rest @ down.T, up), _dot(up.T @ up, down @ down.T)
            if size and energy - inner * inner / size <= max(NOISE * scene.noise, 0.05 * energy):
                return patch
        return None

    def _explains(self, rest: Matrix, other: Matrix, scene: _Scene) -> bool:
        size = _dot(other, other)
        if not size:
            return False
        inner, energy = _dot(rest, other), _dot(rest, rest)
        return energy - inner * inner / size <= max(NOISE * scene.noise, 0.05 * energy)

    def _unknown(self, key: str, scene: _Scene, rest: Matrix, base_energy: float) -> Diagnosis:
        if scene.vectors is not None:
            return Diagnosis(
                key, Cause.VALUES, detail=f"a change that no LoRA of the recipe makes there{_where(scene)}"
            )
        energy = _dot(rest, rest)
        rank, captured = _rank(rest, scene.noise)
        size = sqrt(energy / max(base_energy, 1e-300))
        if rank and captured > 0.9 and min(rest.shape) > 2 * rank:
            return Diagnosis(
                key, Cause.OTHER_LORA, detail=f"a change of rank {rank}, {size:.2g} of the base's norm{_where(scene)}"
            )
        return Diagnosis(key, Cause.VALUES, detail=f"a change of {size:.2g} of the base's norm{_where(scene)}")


SENTENCES = {
    Cause.MISSING: "is not applied",
    Cause.SIGN: "is applied with its sign flipped",
    Cause.ALPHA: "is applied without its alpha: the scale alpha/rank was left out",
    Cause.RSLORA: "is scaled by the wrong one of alpha/rank and alpha/√rank (rsLoRA)",
    Cause.TWICE: "is applied twice",
    Cause.STRENGTH: "is applied at another strength",
    Cause.EXCHANGED: "has up and down exchanged",
    Cause.OTHER_MODULE: "is applied to the wrong tensor",
    Cause.SHIFTED: "lies on the wrong rows",
    Cause.DORA: "is added without DoRA's norm",
    Cause.ROUNDING: "was rounded more than once on the way, or changed in its last places",
    Cause.DRAWS: "is rounded otherwise than the recipe's seed draws: by another seed, or to nearest",
    Cause.NUDGED: "is off in its last places",
    Cause.NONFINITE: "holds NaN or infinity",
    Cause.OTHER_LORA: "holds a low-rank change that no LoRA of the recipe makes there: another LoRA?",
    Cause.VALUES: "holds other values",
}
"""What each cause says of its subject, a LoRA or a tensor."""

_FACTORS = (Cause.MISSING, Cause.SIGN, Cause.ALPHA, Cause.TWICE, Cause.RSLORA)


def findings(
    plan: Plan, diagnoses: list[Diagnosis], results: Sequence[Comparison], stage: str = "weights"
) -> Iterator[Finding]:
    """Sum diagnoses up: one finding for each cause and LoRA, component, or tensor without either."""
    for index, lora in enumerate(plan.sources.loras):
        own = [each for each in diagnoses if each.lora == index]
        modules = {patch.module for patch in plan.patches if patch.lora == index}
        for cause, group in _grouped(own):
            limit = "×1" if group[0].factor is not None else ""
            found = {each.module for each in group}
            names = group[0].module if len(found) == 1 else patterns(each.module for each in group)
            where = f"on {len(found)} of {len(modules)} modules: {names}"
            details = _details(group, "")
            also = frozenset.intersection(*(each.also | {each.cause} for each in group)) - {cause}
            or_else = "".join(f"; as if it {SENTENCES[other]}" for other in sorted(also))
            yield Finding(
                f"{stage}.{cause}",
                Status.FAIL,
                lora.name,
                _measured(plan, index, group),
                limit,
                f"{SENTENCES[cause]} {where}{or_else}{_some(details)}",
            )
    loose = [each for each in diagnoses if each.lora is None]
    owner, foreign = plan.sources.key_map.owner, _foreign(plan, loose, results)
    for component, keys in foreign.items():
        note = f"the whole component is another one: all {len(keys)} tensors of it that no LoRA touches differ"
        yield Finding(f"{stage}.{Cause.VALUES}", Status.FAIL, component, f"{len(keys)} tensors", "0", note)
    groups: dict[tuple[Cause, str], list[Diagnosis]] = {}
    for each in loose:
        component = owner.get(each.key, "")
        if each.key not in foreign.get(component, ()):
            groups.setdefault((each.cause, component), []).append(each)
    for (cause, _), group in groups.items():
        subject = group[0].key if len(group) == 1 else f"{len(group)} tensors"
        details = _details(group, subject)
        note = SENTENCES[cause] if len(group) == 1 else f"{SENTENCES[cause]}: {patterns(each.key for each in group)}"
        yield Finding(f"{stage}.{cause}", Status.FAIL, subject, "", "", f"{note}{_some(details)}")


def _foreign(plan: Plan, loose: list[Diagnosis], results: Sequence[Comparison]) -> dict[str, set[str]]:
    """Find components none of whose own tensors are the base's: what was compared, and no LoRA touches, by keys."""
    own: dict[str, set[str]] = {}
    for result in results:
        component = plan.sources.key_map.owner.get(result.target.key)
        if component is not None and result.is_copy:
            own.setdefault(component, set()).add(result.target.key)
    replaced = {each.key for each in loose if each.cause in (Cause.VALUES, Cause.OTHER_LORA)}
    return {component: keys for component, keys in own.items() if len(keys) > 1 and keys <= replaced}


def _grouped(own: list[Diagnosis]) -> list[tuple[Cause, list[Diagnosis]]]:
    """Group by cause, strengths by how far off they are; a cause that fits all factors of a LoRA goes first."""
    measured = [each for each in own if each.factor is not None]
    common = frozenset.intersection(*(each.also | {each.cause} for each in measured)) if measured else frozenset()
    shared = next((cause for cause in _FACTORS if cause in common), None)
    groups: list[tuple[Cause, list[Diagnosis]]] = []
    for each in sorted(own, key=lambda each: (each.factor is not None, each.cause, each.factor or 0)):
        cause = shared if shared is not None and each.factor is not None else each.cause
        if groups and groups[-1][0] is cause:
            before = groups[-1][1][-1].factor
            if cause is not Cause.STRENGTH or (each.factor or 0) - (before or 0) < 0.03:
                groups[-1][1].append(each)
                continue
        groups.append((cause, [each]))
    return groups


def _measured(plan: Plan, lora: int, group: list[Diagnosis]) -> str:
    """Write the factors found, and the strengths they come to where the recipe has one for all."""
    factors = [each.factor for each in group if each.factor is not None]
    if not factors:
        return f"{len(group)} tensor{'s' * (len(group) > 1)}"
    low, high = min(factors), max(factors)
    strength = plan.sources.loras[lora].entry.strength
    if high - low > 0.02 * max(abs(high), 1):
        return f"×{low:.2f} to ×{high:.2f}"
    middle = sorted(factors)[len(factors) // 2]
    absolute = f" (strength {middle * strength:.2g}, not {strength:g})" if isinstance(strength, float) else ""
    return f"×{middle:.2f}{absolute}"


def _details(group: list[Diagnosis], subject: str) -> dict[str, None]:
    """Gather what is told of single tensors; the `subject` of the finding needs no name again."""
    told = ((each.key, each.detail.strip()) for each in group if each.detail.strip())
    return dict.fromkeys(detail if key == subject else f"{key}: {detail}" for key, detail in told)


def _some(details: dict[str, None]) -> str:
    shown = [*details][:3]
    more = f" and {len(details) - 3} more" if len(details) > 3 else ""
    return f" ({'; '.join(shown)}{more})" if shown else ""


def _dot(one: Matrix, other: Matrix) -> float:
    return float(np.dot(one.ravel().astype(np.float64), other.ravel().astype(np.float64)))


def _rank(rest: Matrix, noise: float) -> tuple[int, float]:
    """Estimate the rank of a change above rounding noise, and the share of its energy within that rank."""
    generator = np.random.default_rng(0)
    columns = min(SKETCH, *rest.shape)
    basis, _ = np.linalg.qr(rest @ generator.standard_normal((rest.shape[1], columns)).astype(np.float32))
    values = np.linalg.svd(basis.T @ rest, compute_uv=False).astype(np.float64)
    floor = sqrt(noise / rest.size) * (sqrt(rest.shape[0]) + sqrt(rest.shape[1]))
    rank = int((values > 1.5 * floor).sum())
    energy = _dot(rest, rest)
    return rank, float(np.square(values[:rank]).sum() / energy) if energy else 0.0


def _alike(one: str, other: str) -> int:
    """Count the characters that two names share at their beginning."""
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(other))


def _where(scene: _Scene) -> str:
    """Name the rows, where not all are wrong."""
    if len(scene.rows) == scene.total_rows:
        return ""
    first, last = int(scene.rows[0]), int(scene.rows[-1])
    if last - first + 1 == len(scene.rows):
        return f" (rows {first} to {last} of {scene.total_rows})" if first < last else f" (row {first})"
    return f" ({len(scene.rows)} of {scene.total_rows} rows, from {first} to {last})"
