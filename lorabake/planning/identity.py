"""Say what a bake is: its name, its architecture, what it was made of, and what its inputs state for it.

This is what takes the place of the base's title, author and picture, so that a bake does not pose as its base. It is
the same for the same recipe and inputs: no date, no machine. `fields` writes it in the words of SAI ModelSpec 1.0.1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.table import SpecName
from lorabake.likeness import nearest
from lorabake.planning.layout import OutputLayout
from lorabake.recipe import Lora, Source
from lorabake.sources import Sources
from lorabake.tensors.small import json_or_text
from lorabake.visible import short_repr, visible

SPEC_VERSION = "1.0.1"
"""The version of SAI ModelSpec that headers follow."""

PHRASES = "lorabake.trigger_phrases"
"""Metadata key for the trigger phrases of each LoRA, as JSON: [["style", "ohwx"]]."""

MOST_OF_A_PHRASE = 2000
"""Letters beyond which a text is no trigger phrase."""

NOTHING = ("", "None", "none", "null")
"""What trainers write where they have nothing to say."""

NAMELESS = re.compile(
    r"(diffusion_)?pytorch_model|model|adapter_model|pytorch_lora_weights",
    re.IGNORECASE,
)
"""Names of files that say nothing, so that the folder's name is taken."""

PREDICTIONS = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v",
    "v_prediction": "v",
    "v-prediction": "v",
    "v_pred": "v",
}
"""What programs call a prediction -> what ModelSpec calls it."""

OTHERWISE_SAMPLED = ("edm_mean", "edm_vpred.sigma_max")
"""Tensors of models that predict neither epsilon nor v in ModelSpec's sense."""


@dataclass(frozen=True, slots=True)
class Ingredient:
    """Name one input of a bake; `role` is base, lora or vae. A LoRA has one `strength`, or one for each component."""

    __repr__ = short_repr

    name: str
    role: str
    path: str
    strength: float | Mapping[str, float] | None = None

    @property
    def told(self) -> str:
        """Write it as ModelSpec's list of sources has it: style (0.8)."""
        match self.strength:
            case None:
                return f"{self.name} (VAE)" if self.role == "vae" else self.name
            case float() | int() as strength:
                return f"{self.name} ({strength:g})"
            case strengths:
                parts = (f"{component} {value:g}" for component, value in sorted(strengths.items()))
                return f"{self.name} ({'; '.join(parts)})"


@dataclass(frozen=True, slots=True)
class Stated:
    """Hold what an input's header states, and the input's name."""

    __repr__ = short_repr

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Hold what a bake says of itself; empty texts are not known, and are not written.

    `ingredients` are the base, the LoRAs in the recipe's order, and a VAE. `trigger_phrases` and `licenses` are
    attributed to the inputs that state them.
    """

    __repr__ = short_repr

    title: str
    architecture: str
    implementation: str
    resolution: str
    prediction: str
    ingredients: tuple[Ingredient, ...]
    trigger_phrases: tuple[Stated, ...]
    licenses: tuple[Stated, ...]

    @property
    def merged_from(self) -> str:
        """List what it was made of: shapes, style (0.8)."""
        return ", ".join(ingredient.told for ingredient in self.ingredients)

    @property
    def trigger_phrase(self) -> str:
        """Join the phrases as a prompt would have them, each once."""
        return ", ".join(dict.fromkeys(phrase.text for phrase in self.trigger_phrases))

    @property
    def usage_hint(self) -> str:
        """Say which LoRA each trigger phrase belongs to."""
        return "; ".join(f"{phrase.text} (of {phrase.name})" for phrase in self.trigger_phrases)

    @property
    def license(self) -> str:
        """List the licences that inputs state: one alone only if every input states it, else each with its input."""
        texts = {stated.text for stated in self.licenses}
        if len(texts) == 1 and len(self.licenses) == len(self.ingredients):
            return self.licenses[0].text
        gap = "\n\n" if any("\n" in text for text in texts) else "; "
        return gap.join(f"{stated.name}: {stated.text}" for stated in self.licenses)


def identity_of(sources: Sources, layout: OutputLayout, title: str) -> Identity:
    """Gather a bake's identity from its inputs and the layout that it gets; `title` comes from the output's name."""
    recipe = sources.recipe
    said = sources.base.metadata
    prediction = _prediction(sources)
    spec = spec_name(sources.key_map, said.get("modelspec.architecture", ""), prediction)
    prediction = prediction or spec.predicts or ("" if _is_sampled_otherwise(sources) else spec.prediction)
    resolution = said.get("modelspec.resolution", "")
    base = Ingredient(_name(recipe.base, said), "base", recipe.base.portable_path)
    loras = [_of_lora(lora.entry, lora.checkpoint.metadata) for lora in sources.loras]
    headers = [(base.name, said)]
    headers += [(each.name, lora.checkpoint.metadata) for each, lora in zip(loras, sources.loras, strict=True)]
    ingredients = [base, *loras]
    if sources.vae is not None and recipe.vae is not None:
        vae = Ingredient(_name(recipe.vae, sources.vae.metadata), "vae", recipe.vae.portable_path)
        ingredients.append(vae)
        headers.append((vae.name, sources.vae.metadata))
    return Identity(
        title=visible(title),  # a name may have bytes that are no text
        architecture=spec.name,
        implementation=_implementation(sources, layout),
        resolution=resolution if re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", resolution) else spec.resolution,
        prediction=prediction,
        ingredients=tuple(ingredients),
        trigger_phrases=(*_earlier(said), *(each for name, own in headers[1:] for each in _phrases(name, own))),
        licenses=tuple(Stated(name, text) for name, own in headers if (text := _license(own))),
    )


def fields(identity: Identity, component: str = "") -> dict[str, str]:
    """Write an identity as metadata of a file.

    `component` names the network of a folder that the file holds, if it isn't the one that makes the architecture.
    """
    architecture = identity.architecture
    if architecture and component:
        architecture = f"{architecture.partition('/')[0]}/{component}"
    named = {
        "architecture": architecture,
        "implementation": identity.implementation,
        "title": identity.title,
        "resolution": identity.resolution,
        "prediction_type": identity.prediction,
        "merged_from": identity.merged_from,
        "trigger_phrase": identity.trigger_phrase,
        "usage_hint": f"Trigger phrases: {identity.usage_hint}" if identity.trigger_phrases else "",
        "license": identity.license,
    }
    if all(named[field] for field in ("architecture", "implementation", "title")):
        named["sai_model_spec"] = SPEC_VERSION
    found = {f"modelspec.{field}": text for field, text in named.items() if text}
    if identity.trigger_phrases:
        pairs = [[phrase.name, phrase.text] for phrase in identity.trigger_phrases]
        found[PHRASES] = json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))
    return found


def doubts_of(sources: Sources) -> Iterator[str]:
    """Yield a note on an architecture that the recipe names and no table has: a program may not know it either."""
    name = sources.recipe.output.metadata.get("modelspec.architecture")
    if name and name not in known_architectures() and name.partition("/")[0] not in known_architectures():
        near = nearest(name, sorted(known_architectures()), cutoff=0.6)
        hint = f"; did you mean {near}?" if near else ""
        yield f"modelspec.architecture is {name!r}, which is none of the names that lorabake knows{hint}"


def known_architectures() -> frozenset[str]:
    """Collect the names that families have in SAI ModelSpec."""
    from lorabake.architectures import architectures

    return frozenset(spec.name for family in architectures() for spec in family.spec if spec.name)


# -- Names -----------------------------------------------------------------------------------------------


def _of_lora(entry: Lora, said: Mapping[str, str]) -> Ingredient:
    return Ingredient(_name(entry, said), "lora", entry.portable_path, entry.strength)


def _name(source: Source, said: Mapping[str, str]) -> str:
    """Name an input by its file; where that says nothing, by the folder around it or by the title in it."""
    path = PurePosixPath(source.portable_path)
    stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
    if not NAMELESS.fullmatch(stem):
        return stem
    around = next((part for part in reversed(path.parts[:-1]) if part.strip("./")), "")
    return around or said.get("modelspec.title") or stem


SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".npz", ".json")


# -- Architecture ----------------------------------------------------------------------------------------


def spec_name(key_map: KeyMap, stated: str, prediction: str) -> SpecName:
    """Choose one of a family's names: the one that the base's header states, or what its tensors tell."""
    family, tensors = key_map.architecture, key_map.tensors
    for spec in family.spec:
        if spec.name and spec.name == stated and spec.predicts in ("", prediction or spec.predicts):
            return spec
    placed = key_map.placed.get(family.components[0].name) if family.components else None
    for spec in family.spec if placed is not None else ():
        fits = placed is not None and all(need.holds(tensors, placed[1]) for need in spec.needs)
        if fits and not spec.is_stated and spec.predicts in ("", prediction):
            return spec
    return SpecName("")


def _implementation(sources: Sources, layout: OutputLayout) -> str:
    """Name the code whose names the tensors get."""
    family = sources.key_map.architecture
    first = family.components[0].name if family.components else ""
    if first not in sources.key_map.placed:
        return family.code
    names = layout.place(first).layout if layout.is_converted else sources.key_map.placed[first][0].name
    return "diffusers" if names == "diffusers" else family.code


def _prediction(sources: Sources) -> str:
    """Find what the recipe, the base's marker tensors, its header or its scheduler say that the model predicts."""
    verify, said = sources.recipe.verify, sources.base.metadata
    if verify is not None and verify.prediction is not None:
        return PREDICTIONS[verify.prediction]
    if "v_pred" in sources.base.tensors:
        return "v"
    told = [said.get("modelspec.prediction_type"), said.get("modelspec.predict_key")]
    told.append("v" if said.get("ss_v_parameterization") in ("True", "true", "1") else None)
    told.append(str(sources.evidence.schedule.get("prediction_type")))
    return next((PREDICTIONS[name] for name in told if name in PREDICTIONS), "")


def _is_sampled_otherwise(sources: Sources) -> bool:
    return any(marker in sources.base.tensors for marker in OTHERWISE_SAMPLED)


# -- What inputs state -----------------------------------------------------------------------------------


def _phrases(name: str, said: Mapping[str, str]) -> Iterator[Stated]:
    """Yield the trigger phrases that a LoRA's header states: ModelSpec's, or the class tokens of kohya's subsets."""
    stated = (said.get(field, "") for field in ("modelspec.trigger_phrase", "trigger_phrase", "ss_trigger_phrase"))
    phrases = [text for text in stated if _is_said(text)] or _class_tokens(said.get("ss_datasets", ""))
    for phrase in dict.fromkeys(text.strip() for text in phrases):
        if len(phrase) <= MOST_OF_A_PHRASE:
            yield Stated(name, phrase)


def _class_tokens(text: str) -> list[str]:
    datasets = json_or_text(text) if text else None
    found = []
    for dataset in datasets if isinstance(datasets, list) else ():
        for subset in _list_in(dataset, "subsets"):
            tokens = subset.get("class_tokens") if isinstance(subset, dict) else None
            if isinstance(tokens, str) and not subset.get("is_reg") and _is_said(tokens):
                found.append(tokens)
    return found


def _list_in(value: object, key: str) -> Iterable[dict[str, object]]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else ()


def _earlier(said: Mapping[str, str]) -> Iterator[Stated]:
    """Yield the trigger phrases of LoRAs that a base of lorabake's was baked with."""
    pairs = json_or_text(said[PHRASES]) if PHRASES in said else None
    for pair in pairs if isinstance(pairs, list) else ():
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair):
            yield Stated(*pair)


def _license(said: Mapping[str, str]) -> str:
    return next(
        (said[field].strip() for field in ("modelspec.license", "license") if _is_said(said.get(field, ""))), ""
    )


def _is_said(text: str) -> bool:
    return text.strip() not in NOTHING
