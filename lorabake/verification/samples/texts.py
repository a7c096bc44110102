"""Let language models speak: greedy text by the base, by the base with its LoRAs, and by the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lorabake.documents.names import Figures
from lorabake.errors import FileError, first_line
from lorabake.keymap import view
from lorabake.planning import Plan
from lorabake.reference.arrays import Files
from lorabake.tensors.checkpoint import optional_object
from lorabake.verification.findings import (
    FORMULAS_APPLIED,
    Finding,
    SampleOptions,
    Samples,
    SettingValue,
    Status,
    TextSample,
    programs_of,
)
from lorabake.verification.samples.album import Album, facts_of_base
from lorabake.verification.samples.foreign_code import NO_CODE, check_folder, without_kernels
from lorabake.verification.samples.judge import LEAST_OF_LOGITS, Yardstick
from lorabake.verification.samples.loading import load_folders
from lorabake.verification.samples.placing import Weights
from lorabake.verification.samples.refusals import CannotDrawError, CannotLoadError
from lorabake.verification.samples.tokenizers import check_words
from lorabake.verification.samples.values import as_torch, in_words

TOKENS = 48
"""How many tokens a model adds to a prompt, unless the steps are given."""


OF_LANGUAGE = ("model.embed_tokens.weight", "lm_head.weight", "wte.weight")
"""How the keys end by which a language model is known, where its configuration names no class."""


def is_language_model(plan: Plan) -> bool:
    """Tell whether the base is a folder of transformers whose model writes text."""
    if not plan.sources.base.is_folder:
        return False
    said = optional_object(plan.sources.base.path / "config.json") or {}
    names = said.get("architectures")
    if names is None and isinstance(said.get("model_type"), str):
        return any(key.endswith(OF_LANGUAGE) for key in plan.sources.base.tensors)
    return isinstance(names, list) and any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def prepare_texts(
    plan: Plan, baked: Path, prompts: tuple[str, ...], options: SampleOptions, album: Album | None = None
) -> Callable[[], tuple[list[Finding], Samples | None]]:
    """Read what it takes beside the weights, and return what then speaks. `album` keeps the base's texts.

    Raise CannotDrawError where the tokenizer is not there or of another model, or transformers has no such model.
    """
    tokenizer = _tokenizer(plan)
    config = _config(plan.sources.base.path).get_text_config()
    check_words(tokenizer, prompts, config.vocab_size, "the model")
    return partial(_speak, plan, baked, prompts, options, tokenizer, album)


def _speak(
    plan: Plan, baked: Path, prompts: tuple[str, ...], options: SampleOptions, tokenizer: Any, album: Album | None
) -> tuple[list[Finding], Samples | None]:
    """Continue each prompt with four models, and compare their logits over the run-time model's text."""
    tokens = options.steps or TOKENS
    device = options.device or "cpu"
    texts: dict[tuple[str, int], str] = {}
    logits: dict[tuple[str, int], Any] = {}
    paths: list[Any] = []
    reference, why = _reference(plan)
    names = ("runtime", "base", "floor", "baked")
    for done, name in enumerate(names):
        try:
            model = _model(plan, baked, name, reference).to(device)
        except CannotLoadError as error:
            reference, why = FORMULAS_APPLIED, str(error)
            model = _model(plan, baked, name, reference).to(device)
        for number, prompt in enumerate(prompts):
            ids = tokenizer(prompt, return_tensors="pt").input_ids.to(device)
            kept = album if name == "base" else None
            said = _said(kept, (facts_of_base(plan), tokens, device, prompt), partial(_greedy, model, ids, tokens))
            if name == "runtime":
                paths.append(said)
            texts[name, number] = tokenizer.decode(said[0].tolist(), skip_special_tokens=True)
            logits[name, number] = _logits(model, paths[number])
            options.progress(done * len(prompts) + number + 1, len(names) * len(prompts), in_words(name))
        del model
    found: list[TextSample] = []
    findings = [
        Finding(
            "samples.reference",
            Status.PASS,
            "run-time model",
            reference,
            "",
            f"it applied the LoRAs: {why}",
            Figures("+".join(programs_of(reference)), unit="program"),
        )
    ]
    for number, prompt in enumerate(prompts):
        own = {
            name: tuple(np.abs(logits[name, number] - logits["runtime", number]).max(axis=1).tolist())
            for name in ("base", "floor", "baked")
        }
        found.append(TextSample(prompt, {name: texts[name, number] for name in names}, own))
        findings += _judge(found[-1])
    settings: dict[str, SettingValue] = {
        "decoding": "greedy",
        "tokens": tokens,
        "device": device,
        "precision": "float32",
    }
    return findings, Samples(reference, settings, texts=tuple(found))


def _tokenizer(plan: Plan) -> Any:
    """Load the tokenizer of the base or of `verify.tokenizers`; raise CannotDrawError where there is none."""
    from transformers import AutoTokenizer

    said = plan.sources.recipe.verify
    folder = plan.sources.base.path
    if said is not None and said.tokenizers is not None:
        folder = plan.sources.recipe.locate(said.tokenizers)
        if not folder.is_dir():
            raise FileError(f"{folder}: verify.tokenizers must be a folder with a tokenizer")
    check_folder(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, **NO_CODE)
    except Exception as error:  # whatever a library says of files that it cannot read
        why = first_line(error)[:120]
        raise CannotDrawError(
            f"no tokenizer that transformers can read: {why}; name one in verify.tokenizers"
        ) from None


def _config(folder: Path) -> Any:
    """Read a model's configuration; raise CannotDrawError where transformers has no such model of its own."""
    from transformers import AutoConfig

    check_folder(folder)
    try:
        return without_kernels(AutoConfig.from_pretrained(folder, **NO_CODE))
    except Exception as error:  # whatever a library says of files that it cannot read
        raise CannotDrawError(f"transformers knows no such model: {first_line(error)[:120]}") from None


def _reference(plan: Plan) -> tuple[str, str]:
    """Say who can apply the LoRAs, and why: PEFT, where all are its folders and the recipe takes them whole."""
    patches = plan.patches
    uniform = len({(patch.lora, patch.strength) for patch in patches}) <= len(plan.sources.loras)
    for lora in plan.sources.loras:
        if lora.config is None:
            return FORMULAS_APPLIED, f"{lora.name} is no folder of PEFT's"
    if not uniform:
        return FORMULAS_APPLIED, "the recipe gives a LoRA several strengths"
    if any(patch.kind.name != "lora" or patch.has_dora for patch in patches):
        return FORMULAS_APPLIED, "not all modules are plain LoRA"
    if not all(step.summed for step in plan.steps):
        return FORMULAS_APPLIED, f"the recipe's method, {plan.sources.recipe.method.name}, is no sum"
    if not patches:
        return FORMULAS_APPLIED, "the recipe has no LoRA"
    return "PEFT", "a program that knows nothing of lorabake"


def _model(plan: Plan, baked: Path, name: str, reference: str) -> Any:
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    folder = baked if name == "baked" else plan.sources.base.path
    config = _config(folder)
    options = {"config": config, "use_safetensors": True, "dtype": torch.float32, **NO_CODE}
    headers = () if name == "baked" else plan.sources.base.headers
    try:
        if all(header.path.suffix == ".safetensors" for header in headers):
            model: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
        else:  # a pickle, which lorabake alone reads
            with closing(Files()) as files:
                state = {key: as_torch(view.seen(info), files) for key, info in plan.sources.base.tensors.items()}
            maker: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            model = maker.from_pretrained(None, state_dict=state, **options)
    except Exception as error:  # whatever a library says of files that it cannot read
        raise CannotDrawError(f"{folder}: transformers makes no model of it: {first_line(error)[:160]}") from error
    model.eval()
    if name == "runtime" and reference == "PEFT":
        return load_folders(plan, model)
    if name in ("runtime", "floor"):
        with closing(Files()) as files:
            Weights(plan, files).place_by_name(model, round_off=name == "floor")
    return model


def _said(album: Album | None, facts: tuple[object, ...], say: Callable[[], Any]) -> Any:
    """Return the tokens (1, count) that a model says; what the album has is not said again."""
    import torch

    if album is None:
        return say()
    if (kept := album.tokens(facts)) is not None:
        return torch.from_numpy(kept)
    said = say()
    album.keep_tokens(facts, said.cpu().numpy())
    return said


def _greedy(model: Any, ids: Any, tokens: int) -> Any:
    import torch

    try:
        with torch.no_grad():
            return model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
            )
    except Exception as error:  # whatever a library says of a configuration that it cannot run
        raise CannotDrawError(f"transformers cannot run the model: {first_line(error)[:160]}") from error


def _logits(model: Any, ids: Any) -> Any:
    """Return the logits (positions, vocabulary) over a text."""
    import torch

    with torch.no_grad():
        return model(input_ids=ids).logits[0].float().cpu().numpy()


def _judge(sample: TextSample) -> Iterator[Finding]:
    """Hold the largest difference of the checkpoint's logits against floor and ceiling."""
    floor, measured, ceiling = (max(sample.logits[name], default=0.0) for name in ("floor", "baked", "base"))
    yardstick = Yardstick.of(floor, ceiling, LEAST_OF_LOGITS)
    is_true = yardstick.passes(measured)
    where = "at the floor" if yardstick.is_at_floor(measured) else "above the floor"
    note = f"{where} of {floor:.2g}; the base is at {ceiling:.2g}"
    status = Status.PASS if is_true else Status.FAIL
    figures = Figures(measured, yardstick.limit, "logit")
    yield Finding("samples.logits", status, sample.prompt, f"{measured:.2g}", f"{yardstick.limit:.2g}", note, figures)
    same = sample.texts["baked"] == sample.texts["runtime"]
    note = "the checkpoint says what the run-time model says" if same else f"it says: {sample.texts['baked']}"
    told = Status.PASS if same else Status.FAIL if not is_true else Status.WARN
    yield Finding("samples.text", told, sample.prompt, "", "", note)
    if not yardstick.tells:
        note, limit = "the LoRAs change nothing that is heard: the base has the same logits", yardstick.near
        figures = Figures(ceiling, limit, "logit")
        yield Finding(
            "samples.effect", Status.WARN, sample.prompt, f"{ceiling:.2g}", f"above {limit:.2g}", note, figures
        )
