"""Compare the files beside the weights of a folder: does a configuration describe the same model?

diffusers and transformers write versions, paths and defaults into the configurations that they save, which do not
affect the model. Other tools may rewrite tokenizers, licences and the like; that is only a warning.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from filecmp import cmp
from importlib.util import find_spec
from pathlib import Path
from warnings import catch_warnings, simplefilter

from lorabake.documents.names import Figures
from lorabake.errors import LorabakeError
from lorabake.planning import Plan
from lorabake.planning.beside import MISSING
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.small import content_of, holds, parse_json
from lorabake.verification.findings import Finding, Status

DESCRIBES = ("_class_name", "model_type", "architectures")
"""Every configuration of a network, a scheduler or a pipeline has one of these fields."""

SAYS_NOTHING = {
    "transformers_version", "unsloth_version", "unsloth_fixed", "adapters", "use_cache", "gradient_checkpointing",
    "output_attentions", "output_hidden_states", "return_dict", "return_dict_in_generate", "torchscript",
    "initializer_range", "initializer_factor", "init_std",
}  # fmt: skip
"""Fields about how a configuration was written, or a model is run or trained, not about what it computes.

So are all fields that begin with an underscore, except `_class_name`, and all fields on dropout.
"""

OF_TEXTS = {
    "pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id",
    "forced_bos_token_id", "forced_eos_token_id", "max_length", "max_new_tokens", "min_length", "do_sample",
    "temperature", "top_k", "top_p", "typical_p", "num_beams", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "suppress_tokens", "begin_suppress_tokens", "task_specific_params",
    "id2label", "label2id",
}  # fmt: skip
"""Fields on how texts begin, end and are sampled, and on names of outputs; the model computes the same."""

PRECISION = ("torch_dtype", "dtype")
"""Dtype in which transformers loads the weights; the tensors' own dtype changes nothing."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Say how a side file differs from what it should be; `silent` names fields that do not affect the model."""

    name: str
    words: str = ""
    describes: bool = False
    is_certain: bool = True
    silent: tuple[str, ...] = ()


def check_side_files(plan: Plan, baked: Checkpoint, *, is_own: bool) -> Iterator[Finding]:
    """Compare the side files of a folder with the base's, or with what the plan makes of them.

    If lorabake made the folder (`is_own`), everything must be equal. If another tool did, a configuration must
    describe the same model; other differences are warnings.
    """
    path, names = baked.path, _names(plan)
    if not names:
        return
    found = [each for name in names if (each := _difference(plan, baked, name, is_own=is_own)) is not None]
    spoken = [each for each in found if each.words]
    wrong = [each for each in spoken if is_own or (each.describes and each.is_certain)]
    odd = [each for each in spoken if each not in wrong]
    if wrong:
        note = "; ".join(each.words for each in wrong[:5])
        yield Finding(
            "structure.side_files",
            Status.FAIL,
            path.name,
            f"{len(wrong)}",
            "0",
            note,
            Figures(len(wrong), 0, "files"),
        )
    if odd:
        note = f"written anew by another tool: {'; '.join(each.words for each in odd[:5])}"
        yield Finding(
            "structure.side_files", Status.WARN, path.name, f"{len(odd)}", "0", note, Figures(len(odd), 0, "files")
        )
    same = len(names) - len(spoken)
    if same:
        silent = [f"{each.name}: {', '.join(each.silent)}" for each in found if each.silent and not each.words]
        note = "configs as they must be" if not spoken else "the others are as they must be"
        if silent:
            note += f"; without a say in the model, and other than the base's: {'; '.join(silent[:5])}"
        yield Finding(
            "structure.side_files", Status.PASS, path.name, f"{same} files", "", note, Figures(same, unit="files")
        )


def _names(plan: Plan) -> tuple[Path, ...]:
    """List what there has to be beside the weights: the base's own files, or those that the plan writes or copies."""
    if not plan.layout.is_converted:
        return plan.side_files if plan.is_folder and plan.sources.base.is_folder else ()
    written = (name for name in plan.texts if name != MISSING and not name.endswith(".safetensors.index.json"))
    return (*plan.side_files, *map(Path, (*written, *plan.copied)))


def _difference(plan: Plan, baked: Checkpoint, name: Path, *, is_own: bool) -> Difference | None:
    """Compare one side file; None if it is equal byte for byte."""
    made, copied = plan.texts.get(name.as_posix()), baked.path / name
    own = plan.copied.get(name.as_posix(), plan.sources.base.path / name)
    wanted = _parsed(own if made is None else made)
    describes = wanted is not None and any(field in wanted for field in DESCRIBES)
    if not copied.is_file():
        return Difference(name.as_posix(), f"{name} is missing", describes)
    if holds(copied, made.encode()) if made is not None else cmp(own, copied, shallow=False):
        return None
    whose = "plan" if made is not None else "part" if name.as_posix() in plan.copied else "base"
    words = f"{name} differs from the {whose}'s"
    there = _parsed(copied)
    if wanted is None or there is None or not describes:
        return Difference(name.as_posix(), words, describes)
    dtype = _dtype(baked, name.parent.as_posix().removeprefix("."))
    one, other = _pair(wanted, there, dtype)
    silent = tuple(sorted(_silent(wanted, there)))
    if one == other:
        return Difference(name.as_posix(), silent=silent or ("its layout",))
    read = None if is_own else _as_read(wanted, there, dtype)
    if read is not None:
        one, other = read
        if one == other:
            return Difference(name.as_posix(), silent=(*silent, "what transformers reads alike"))
    changed = sorted(key for key in one.keys() & other.keys() if one[key] != other[key])
    told = [f"{key} is {_shown(other[key])}, not {_shown(one[key])}" for key in changed]
    told += [f"{key} is not there" for key in sorted(one.keys() - other.keys())]
    told += [
        f"{key} is {_shown(other[key])}, of which the base says nothing" for key in sorted(other.keys() - one.keys())
    ]
    # A missing field may have its default value; a dtype other than the tensors' own affects the model.
    apart = one.keys() ^ other.keys()
    differing = {*changed, *(key for key in apart if read is not None or key.endswith("dtype"))}
    is_certain = any(OF_TEXTS.isdisjoint(key.split(".")) for key in differing)
    return Difference(name.as_posix(), f"{words} ({', '.join(told[:4])})", True, is_certain)


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)[:80]


def _parsed(place: Path | str) -> dict[str, object] | None:
    """Return the JSON object in a file or a text; None if it could not be a configuration."""
    try:
        found = parse_json(place if isinstance(place, str) else content_of(place))
    except (ValueError, LorabakeError):
        return None
    return found if isinstance(found, dict) else None


def _pair(
    wanted: Mapping[str, object], there: Mapping[str, object], dtype: str
) -> tuple[dict[str, object], dict[str, object]]:
    """Return the fields of two configurations that affect the model, without dtypes if both have the tensors' own."""
    one, other = dict(_fields(wanted)), dict(_fields(there))
    for key in {each for each in one | other if each.endswith("dtype")}:
        if {one.get(key, dtype), other.get(key, dtype)} == {dtype}:
            one.pop(key, None)
            other.pop(key, None)
    return one, other


def _fields(config: Mapping[str, object], place: str = "") -> Iterator[tuple[str, object]]:
    """Yield the fields that affect the model, by path, except nulls."""
    for key, value in config.items():
        if _is_silent(key) or value is None or value == [None, None]:
            continue
        if isinstance(value, dict):
            yield from _fields(value, f"{place}{key}.")
        elif key in PRECISION:
            yield f"{place}dtype", str(value).removeprefix("torch.")
        else:
            yield f"{place}{key}", value


def _is_silent(field: str) -> bool:
    if field in SAYS_NOTHING or "dropout" in field or field.endswith(("pdrop", "layerdrop")):
        return True
    return field.startswith("_") and field != "_class_name"


def _silent(wanted: Mapping[str, object], there: Mapping[str, object]) -> set[str]:
    """Name the differing fields that do not affect the model; a dtype keeps the file's own name for it."""
    differing = {key for key in {**wanted, **there} if wanted.get(key) != there.get(key)}
    return {key for key in differing if _is_silent(key) or key in PRECISION}


def _dtype(baked: Checkpoint, folder: str) -> str:
    """Return torch's name of the dtype that most float tensors of a part have."""
    headers = (header for part in baked.parts if part.folder == folder for header in part.files)
    counts = Counter(info.dtype for header in headers for info in header.tensors.values())
    floats = Counter({name: count for name, count in counts.items() if name in DTYPES and DTYPES[name].floating})
    return str(DTYPES[floats.most_common(1)[0][0]].torch) if floats else ""


def _as_read(
    wanted: Mapping[str, object], there: Mapping[str, object], dtype: str
) -> tuple[dict[str, object], dict[str, object]] | None:
    """Return the fields of two configurations as transformers reads them; None if it cannot read them.

    transformers fills in its defaults, and knows older names of fields.
    """
    model = wanted.get("model_type")
    if model != there.get("model_type") or not isinstance(model, str) or find_spec("transformers") is None:
        return None
    with catch_warnings():
        simplefilter("ignore")
        try:
            from transformers.models.auto.configuration_auto import CONFIG_MAPPING

            reader = CONFIG_MAPPING[model]
            read = [reader.from_dict({**each}).to_dict() for each in (wanted, there)]
        except (KeyError, ValueError, TypeError, AttributeError, ImportError, OSError, RuntimeError):
            return None
    one, other = (json.loads(json.dumps(each, default=str)) for each in read)
    return _pair(one, other, dtype)
