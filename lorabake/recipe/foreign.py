"""Say what other programs' words are called in a recipe, and where a known key belongs that stands elsewhere.

People come from A1111, ComfyUI, kohya's scripts, PEFT, diffusers and mergekit, and bring their words along.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from lorabake.likeness import nearest
from lorabake.settings import (
    BAKE_AND_REPORT,
    BAKE_IN_THREADS,
    BAKE_ON_CPU,
    BAKE_OVER,
    BAKE_QUIETLY,
    BLOCKS_OF_A_PROMPT,
)

OF_THE_CALL = {
    "device": BAKE_ON_CPU,
    "force": BAKE_OVER,
    "overwrite": BAKE_OVER,
    "quiet": BAKE_QUIETLY,
    "report": BAKE_AND_REPORT,
    "threads": BAKE_IN_THREADS,
    "workers": BAKE_IN_THREADS,
}
"""Key -> what says it where a recipe is baked; a recipe says only what may change the bytes."""

GIVEN = "GIVEN"
"""What stands in an advice for the number that the key has in the recipe."""

WEIGHTS = "WEIGHTS"
"""What stands in an advice for the block weights that the key has in the recipe."""

KEY = "KEY"
"""What stands in an advice for the key itself."""

FROM_FILE = "lorabake reads it from the LoRA's file"


OF_OUTPUT = "remove it: output.path says where the checkpoint goes, as output: {path: FILE}"


def _same(key: str, words: str) -> Iterator[tuple[str, str]]:
    """Pair each of the words with the advice to write a key instead."""
    return ((word, f"write {key} instead") for word in words.split())


def _told(advice: str, words: str) -> Iterator[tuple[str, str]]:
    """Pair each of the words with an advice."""
    return ((word, advice) for word in words.split())


def _table(*rows: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {word: advice for row in rows for word, advice in row}


OF_NETWORKS = {
    "unet": "strength_model model_strength unet unet_weight unet_strength unet_multiplier",
    "text_encoder": (
        "strength_clip clip_strength clip text_encoder text_encoder_strength te te_strength te_weight te_multiplier"
    ),
}
"""Component -> what image programs call a LoRA's strength for it."""


def component_meant(word: str) -> str | None:
    """Return the component that image programs mean by a word; every network but a text encoder is called unet."""
    if word == "model":
        return "unet"
    return next((component for component, words in OF_NETWORKS.items() if word in words.split()), None)


_NAME_OF_A_FILE = "file filename file_name filepath file_path name src source location url id repo"

_LORA = _table(
    _same(
        "strength",
        "weight weights multiplier scale scaling alpha ratio ratios factor amount value intensity coefficient",
    ),
    _same(
        "strength", "lora_weight lora_scale adapter_weight adapter_weights network_multiplier cross_attention_scale"
    ),
    _told(f"write strength: {{unet: {GIVEN}, text_encoder: 1}}", OF_NETWORKS["unet"]),
    _told(f"write strength: {{unet: 1, text_encoder: {GIVEN}}}", OF_NETWORKS["text_encoder"]),
    _told(f"write strength: {{transformer: {GIVEN}}}", "transformer"),
    _same("path", f"{_NAME_OF_A_FILE} lora lora_name lora_path adapter adapter_path model model_path"),
    _told(
        f"write blocks, which names each block: {BLOCKS_OF_A_PROMPT.format(WEIGHTS)} writes it for you",
        "lbw lbws lora_block_weight block_weight block_weights",
    ),
    _told('write blocks: {"up_blocks.*": 0.5} instead', "layers"),
    _told('remove it: all modules of the LoRA are baked; ignore: ["*q_proj*"] leaves some out', "target_modules"),
    _told("write ignore: [PATTERN] for what to leave out, or components", "exclude_modules exclude"),
    _same("trained_on", "base base_model family architecture"),
    _told(f"remove it: {FROM_FILE}", "rank r dim network_dim network_alpha lora_alpha peft_type kind"),
    _told("remove it: a LoRA is named by its path", "adapter_name"),
    _told("remove it: a trigger word goes into the prompts", "trigger trigger_word trigger_words activation_text"),
    _told("remove it: what is in the list is baked; write # before an entry to leave it out", "enabled active on"),
    _told("write dtype under output: it holds for the whole checkpoint", "dtype precision torch_dtype"),
)

_BASE = _table(
    _same("path", f"{_NAME_OF_A_FILE} model checkpoint ckpt model_path pretrained_model_name_or_path"),
    _told("download that revision, and give its folder as path", "revision"),
    _told("write vae at the top of the recipe", "vae vae_path"),
    _told("write dtype under output: it says what is written", "dtype precision torch_dtype"),
)

_OUTPUT = _table(
    _same("path", f"{_NAME_OF_A_FILE} to out output save_to save_path folder dir directory output_dir destination"),
    _same("dtype", "precision save_precision torch_dtype out_dtype type"),
    _same("shard_size", "max_shard_size shards max_size"),
    _told("write layout: diffusers, or layout: single", "structure convert convert_to to_diffusers single_file"),
    _told("remove it: the output is always SafeTensors", "format safe_serialization save_model_as"),
    _told("write metadata: {title: null} for each field to leave out", "no_metadata"),
    _same("metadata", "modelspec header"),
    _told(
        "write it under output.metadata, as output: {path: FILE, metadata: {KEY: …}}",
        "title author description license tags date",
    ),
)

_VERIFY = _table(
    _same("prompts", "prompt positive positive_prompt"),
    _same("negative_prompt", "negative negative_prompts neg"),
    _same("guidance", "cfg cfg_scale guidance_scale scale"),
    _same("steps", "num_inference_steps sampling_steps num_steps"),
    _told("write size: [512, 768], width first", "width height resolution"),
    _same("prediction", "prediction_type parameterization v_pred"),
    _told("remove it: lorabake samples as the model's own configuration says", "sampler sampler_name scheduler"),
)

_METHOD = _table(
    _same("name", "method type merge_method combination_type mode"),
    _same("density", "keep k p trim ratio drop drop_rate"),
    _told("write strength for each LoRA", "weight weights"),
)

_TOP = _table(
    _same("base", "model checkpoint ckpt base_model sd_model base_model_name_or_path pretrained_model_name_or_path"),
    _same("base", "model_path model_name ckpt_name unet diffusion_model"),
    _same("loras", "lora adapters adapter models networks network_weights lora_models lora_path lora_name"),
    _same("vae", "vae_path vae_name"),
    _told("write dtype under output, as output: {path: FILE, dtype: float16}", "precision save_precision out_dtype"),
    _told("write dtype under output, as output: {path: FILE, dtype: float16}", "dtype torch_dtype"),
    _told(OF_OUTPUT, "save_to save_path out out_path output_path output_file output_dir outfile"),
    _told(OF_OUTPUT, "output_name filename destination target path"),
    _same("method", "merge_method combination_type merge_mode mode"),
    _told("remove it: the output is named by output.path", "name"),
    _told("write strength for each LoRA", "weight weights multiplier scale alpha ratio ratios lora_scale strengths"),
    _told("write method: {name: ties, density: 0.5}", "density"),
    _told("write it under verify, for sample pictures (a random method or rounding has its own seed)", "seed"),
    _told("a lock has it: give the recipe that the lock is for", "inputs"),
    _told("write prompts under verify", "prompt"),
    _told("write shard_size under output", "max_shard_size"),
    _told("lorabake bakes LoRAs into one base; for merges of whole models use mergekit", "slices"),
    _told("remove it: it is a key of mergekit, and a LoRA's strength stands in its entry of loras", "parameters"),
    _told("remove it: the output keeps the base's tokenizer", "tokenizer_source tokenizer chat_template"),
    _told("remove it: it belongs to the program that makes the pictures", "clip_skip sampler scheduler"),
)

_OF_PARTS = {
    "loras": _LORA,
    "base": _BASE,
    "vae": _BASE,
    "output": _OUTPUT,
    "verify": _VERIFY,
    "method": _METHOD,
}
"""Key at the top of a recipe -> words that people write in it."""

DTYPES = _table(
    _same("float16", "fp16 half f16 16 torch.float16"),
    _same("bfloat16", "bf16 b16 torch.bfloat16"),
    _same("float32", "fp32 f32 full single float 32 torch.float32"),
    _same("float8_e4m3fn", "fp8 f8 float8 fp8_e4m3 fp8_e4m3fn float8_e4m3 torch.float8_e4m3fn"),
    _same("float8_e5m2", "fp8_e5m2 torch.float8_e5m2"),
    _same("keep", "auto same base none original"),
    _told(
        "lorabake writes floats only; quantize the output with the program that will run it",
        "int8 int4 nf4 q8_0 q4_k",
    ),
)
"""What people write for a dtype."""

METHODS = _table(
    _same("sum", "linear add lerp weighted task_arithmetic cat"),
    _same("dare_linear", "dare dare_sum"),
    _same("magnitude_prune", "prune magnitude magnitude_prune_svd"),
    _same("ties", "ties_svd trim"),
    _told(
        "lorabake has no such method: write method: sum to add the LoRAs up, as other programs do",
        "slerp passthrough",
    ),
)
"""What people write for a method."""

LAYOUTS = _table(
    _same("diffusers", "folder pipeline hf huggingface multifolder"),
    _same("single", "single_file singlefile file checkpoint ckpt original"),
    _told("write layout: single", "comfy comfyui ldm sgm bfl sai native a1111 webui kohya"),
)
"""What people write for a layout."""

PROGRAMS = _table(
    _same("a1111", "automatic1111 sd-webui webui stable-diffusion-webui"),
    _same("comfyui", "comfy"),
    _same("peft", "diffusers transformers hf"),
    _told("remove the key: without it, a LoRA is read as it is defined", "kohya kohya_ss sd-scripts none default"),
)
"""What people write for a program."""

VALUES = {"dtype": DTYPES, "method": METHODS, "name": METHODS, "semantics": PROGRAMS, "layout": LAYOUTS}
"""Key -> what people write as its value."""


def advice_on_key(part: str | None, key: str, given: object) -> str | None:
    """Say what to write instead of a key in a part of a recipe (loras, output …; None at its top).

    `given` is the key's value.
    """
    word = key.casefold().replace("-", "_")
    if part in (None, "output") and word in OF_THE_CALL:
        call = str(OF_THE_CALL[word])
        return f"remove it, and write {call.replace('cpu', given) if given in ('cuda', 'mps', 'xpu') else call}"
    advice = (_TOP if part is None else _OF_PARTS.get(part, {})).get(word)
    number = f"{given:g}" if isinstance(given, int | float) else "0.8"
    weights = ",".join(map(str, given)) if isinstance(given, tuple) else str(given)
    weights = weights if re.fullmatch(r"[\w.,-]{1,80}", weights) else WEIGHTS
    return advice and _with_value(advice, given).replace(GIVEN, number).replace(WEIGHTS, weights).replace(KEY, word)


def _with_value(advice: str, given: object) -> str:
    """Add to the advice to write a key instead what its value is called here, if other programs call it otherwise."""
    key = re.fullmatch(r"write (\w+) instead", advice)
    known = key and advice_on_value(key[1], str(given))
    value = known and re.fullmatch(r"write (\w+) instead", known)
    return f"write {key[1]}: {value[1]} instead ({given} is called {value[1]} here)" if key and value else advice


def near_key(part: str | None, key: str) -> str | None:
    """Return the word of other programs that was probably meant by a key."""
    return nearest(key, _TOP if part is None else _OF_PARTS.get(part, {}), cutoff=0.8)


def advice_on_value(key: str, value: str) -> str | None:
    """Say what to write instead of a value that other programs know."""
    return VALUES.get(key, {}).get(value.casefold())
