"""Let language models speak: greedy text by the base, by the base with its LoRAs, and by the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lorabake.errors import FileError, first_line
from lorabake.planning import Plan
from lorabake.reference.arrays import Files
from lorabake.reference.recompute import Recomputation
from lorabake.tensors.checkpoint import optional_object
from lorabake.verification.findings import Finding, SampleOptions, Samples, Status, TextSample
from lorabake.verification.samples.foreign_code import NO_CODE, check_folder, without_kernels
from lorabake.verification.samples.networks import as_torch
from lorabake.verification.samples.parts import CannotDrawError, check_words
from lorabake.verification.samples.runtime import FORMULAS_APPLIED, CannotLoadError, check_configs

TOKENS = 48
"""How many tokens a model adds to a prompt, unless --steps says otherwise."""

LEAST = 1e-5
"""The difference between logits below which two float32 results count as equal."""


def is_language_model(plan: Plan) -> bool:
    """Tell whether the base is a folder of transformers whose model writes text."""
    if not plan.sources.base.is_folder:
        return False
    names = (optional_object(plan.sources.base.path / "config.json") or {}).get("architectures")
    return isinstance(names, list) and any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def prepare_texts(
    plan: Plan, baked: Path, prompts: tuple[str, ...], options: SampleOptions
) -> Callable[[], tuple[Samples | None, list[Finding]]]:
    """Read what it takes beside the weights, and return what then speaks.

    Raise CannotDrawError where the tokenizer is not there or of another model, or transformers has no such model.
    """
    tokenizer = _tokenizer(plan)
    config = _config(plan.sources.base.path).get_text_config()
    check_words(tokenizer, prompts, config.vocab_size, "the model")
    return partial(_speak, plan, baked, prompts, options, tokenizer)


def _speak(
    plan: Plan, baked: Path, prompts: tuple[str, ...], options: SampleOptions, tokenizer: Any
) -> tuple[Samples | None, list[Finding]]:
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
            said = _greedy(model, ids, tokens)
            if name == "runtime":
                paths.append(said)
            texts[name, number] = tokenizer.decode(said[0].tolist(), skip_special_tokens=True)
            logits[name, number] = _logits(model, paths[number])
            options.progress(done * len(prompts) + number + 1, len(names) * len(prompts), name)
        del model
    found: list[TextSample] = []
    findings = [
        Finding("samples.reference", Status.PASS, "run-time model", reference, "", f"it applied the LoRAs: {why}")
    ]
    for number, prompt in enumerate(prompts):
        own = {
            name: tuple(np.abs(logits[name, number] - logits["runtime", number]).max(axis=1).tolist())
            for name in ("base", "floor", "baked")
        }
        found.append(TextSample(prompt, {name: texts[name, number] for name in names}, own))
        findings += _judge(found[-1])
    settings = {"text": "greedy", "tokens": str(tokens), "device": device, "precision": "float32"}
    return Samples(reference, settings, texts=tuple(found)), findings


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
                state = {key: as_torch(info, files) for key, info in plan.sources.base.tensors.items()}
            maker: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            model = maker.from_pretrained(None, state_dict=state, **options)
    except Exception as error:  # whatever a library says of files that it cannot read
        raise CannotDrawError(f"{folder}: transformers makes no model of it: {first_line(error)[:160]}") from error
    model.eval()
    if name == "runtime" and reference == "PEFT":
        return _with_peft(plan, model)
    if name in ("runtime", "floor"):
        _place(plan, model, round_off=name == "floor")
    return model


def _with_peft(plan: Plan, model: Any) -> Any:
    """Let PEFT load the LoRAs; raise CannotLoadError where it would apply other modules than the recipe does."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    strengths = {patch.lora: patch.strength for patch in plan.patches}
    names = [f"lora_{index}" for index in range(len(plan.sources.loras))]
    for index, lora in enumerate(plan.sources.loras):
        check_configs(lora)
        file = lora.checkpoint.parts[0].files[0].path
        if file.name != "adapter_model.safetensors":
            raise CannotLoadError(f"{lora.name}: {file.name} is no file that PEFT reads without unpickling")
        folder = file.parent
        try:
            if index == 0:
                model = PeftModel.from_pretrained(model, str(folder), adapter_name=names[0], is_trainable=False)
            else:
                model.load_adapter(str(folder), adapter_name=names[index], is_trainable=False)
        except Exception as error:
            raise CannotLoadError(
                f"PEFT cannot load {lora.name}: {str(error).partition(chr(10))[0][:200]}"
            ) from error
        layers = [each for each in model.modules() if isinstance(each, LoraLayer) and names[index] in each.scaling]
        due = sum(patch.lora == index for patch in plan.patches)
        if len(layers) != due:
            raise CannotLoadError(f"PEFT changes {len(layers)} modules by {lora.name}, the recipe {due}")
        for layer in layers:
            layer.scaling[names[index]] *= strengths.get(index, 0.0)
    model.base_model.set_adapter(names)
    return model.eval()


def _place(plan: Plan, model: Any, *, round_off: bool) -> None:
    """Put the recomputed weights in place; transformers' names are the base's own."""
    import torch

    parameters = dict(model.named_parameters())
    prefix = next((start for start in ("", "model.", "transformer.") if _fits(plan, parameters, start)), None)
    if prefix is None:
        raise FileError(f"{plan.sources.base.path}: transformers names its tensors otherwise than the files do")
    with closing(Files()) as files, torch.no_grad():
        recomputation = Recomputation(plan, files)
        for step in plan.steps:
            for tile in recomputation.tiles(step):
                values = recomputation.rounded(tile, tile.exact) if round_off else tile.exact
                place = parameters[prefix + tile.target.source.name]
                rows = place.view(*(tile.target.shape[:1] or (1,)), -1)
                rows[tile.start : tile.start + len(values)] = torch.from_numpy(values.astype(np.float32))


def _fits(plan: Plan, parameters: dict[str, Any], prefix: str) -> bool:
    return all(prefix + target.source.name in parameters for step in plan.steps for target in step.targets)


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


def _judge(each: TextSample) -> Iterator[Finding]:
    """Hold the largest difference of the checkpoint's logits against floor and ceiling."""
    floor, measured, ceiling = (max(each.logits[name], default=0.0) for name in ("floor", "baked", "base"))
    low = max(floor, LEAST)
    limit = max((low * max(ceiling, low)) ** 0.5, 2 * low)
    is_true = measured <= limit
    note = (
        f"{'at the floor' if measured <= 2 * low else 'above the floor'} of {floor:.2g}; the base is at {ceiling:.2g}"
    )
    status = Status.PASS if is_true else Status.FAIL
    yield Finding("samples.logits", status, each.prompt, f"{measured:.2g}", f"{limit:.2g}", note)
    same = each.texts["baked"] == each.texts["runtime"]
    note = "the checkpoint says what the run-time model says" if same else f"it says: {each.texts['baked']}"
    told = Status.PASS if same else Status.FAIL if not is_true else Status.WARN
    yield Finding("samples.text", told, each.prompt, "", "", note)
    if ceiling <= 2 * low:
        note = "the LoRAs change nothing that is heard: the base has the same logits"
        yield Finding("samples.effect", Status.WARN, each.prompt, f"{ceiling:.2g}", f"above {2 * low:.2g}", note)
