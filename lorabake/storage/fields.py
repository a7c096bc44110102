"""Tell which fields of a header describe the base, and so go, and which a recipe may not set.

What programs read in order to load a model stays, byte for byte: `docs/metadata.md` lists it. A field that is not
known here stays, too, since somebody may read it.
"""

from __future__ import annotations

from collections.abc import Mapping

from lorabake.storage.statements import LAYERS, LOOSE, MODEL_KEYS

DESCRIBING = (
    "modelspec.",  # Stability's ModelSpec
    "ss_",  # kohya's trainers
    "sshs_",  # hashes of kohya's trainers
    "ssmd_",  # A1111's Additional Networks: names, authors, ratings, pictures
    "sd_merge_",  # A1111's checkpoint merger
    "ot_",  # OneTrainer
    "civitai",
    "lorabake.",  # an earlier bake
)
"""How the names of fields begin that describe a model or its making."""

DESCRIBING_ALONE = frozenset(
    {
        "title", "name", "model_name", "display_name", "author", "authors", "creator", "description", "date",
        "created", "created_at", "creation_date", "thumbnail", "preview", "preview_image", "cover_image",
        "usage_hint", "tags", "license", "trigger_phrase", "trigger_word", "trigger_words", "merged_from",
        "hash_sha256", "sha256", "hash", "hashes", "url", "website", "source", "homepage", "base_model",
        "comment", "notes", "prompt", "workflow", "parameters",  # ComfyUI's graph, A1111's generation text
        "software", "training_info", "recipe", "merge_recipe", "merge_config",
    }
)  # fmt: skip
"""Fields without a prefix that describe a model or its making."""

READ = {
    "format": "transformers, MLX",
    "config": "ComfyUI (LTX-Video, LTX-2 and their parts), Lightricks' own code",
    "_quantization_metadata": "ComfyUI",
    "quantization_config": "diffusers, transformers and who follows them",
    "architecture": "SwarmUI",
    "general.architecture": "SwarmUI",
    "model_type": "SwarmUI",
    "modelspec.predict_key": "programs that follow ComfyUI's save nodes",
    "modelspec.noise_process": "trainers of SDXL with other noise",
    "modelspec.timestep_range": "programs that follow ModelSpec",
    "modelspec.encoder_layer": "programs that follow ModelSpec",
    "modelspec.unet_dtype": "programs that follow ModelSpec",
    "modelspec.vae_dtype": "programs that follow ModelSpec",
    "modelspec.special_format": "SwarmUI",
    "modelspec.data_format": "programs that follow ModelSpec",
    "modelspec.format_template": "programs that follow ModelSpec",
}
"""Field of a base that says how to load or run it, and that a bake keeps -> who reads it."""

RECIPE, INPUTS = "lorabake.recipe", "lorabake.inputs"
"""Fields of a baked file: the recipe in its normal form, and what identifies its inputs."""

GROUPS = ("identity", "training", "lorabake", "loading", "other")
"""How fields are grouped for readers."""

TRAINING = ("ss_", "ssmd_", "sd_merge_", "ot_", "lora_adapter_metadata", "software", "training_info")
"""How the names of fields begin that say how a model was trained or merged."""

DATA_HASHES = ("modelspec.hash_sha256", "sshs_model_hash")
LEGACY_HASH = "sshs_legacy_hash"  # AUTOMATIC1111's: SHA-256 of 64 KiB at 1 MiB, the first eight digits

THUMBNAIL = "modelspec.thumbnail"
OWN = "lorabake."
SPEC = "modelspec."

SHORT = frozenset(
    {
        "title", "author", "description", "date", "license", "usage_hint", "thumbnail", "tags", "merged_from",
        "trigger_phrase", "prediction_type", "resolution", "architecture", "implementation", "implementation_version",
        "timestep_range", "encoder_layer", "preprocessor", "is_negative_embedding", "unet_dtype", "vae_dtype",
        "hash_sha256", "sai_model_spec",
    }
)  # fmt: skip
"""Fields of ModelSpec that a recipe may name without `modelspec.` in front."""


def describes(name: str) -> bool:
    """Tell whether a field describes the base rather than how to load it."""
    plain = name.lower()
    return plain not in READ and (plain.startswith(DESCRIBING) or plain in DESCRIBING_ALONE)


def group_of(name: str) -> str:
    """Return the group that a field belongs to."""
    if name.startswith(OWN):
        return "lorabake"
    if name.lower() in READ or name in (*MODEL_KEYS, *LOOSE):
        return "loading"
    if name.startswith(TRAINING):
        return "training"
    return "identity" if describes(name) else "other"


def kept(said: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of a base's header that a bake keeps, as they are."""
    return {name: text for name, text in said.items() if not describes(name)}


def whole_name(name: str) -> str:
    """Return a field's name in the header; ModelSpec's fields may be named without their prefix."""
    return SPEC + name if name in SHORT else name


def why_not(name: str) -> str | None:
    """Say why nobody may set or remove a field; None if one may."""
    if name.startswith(OWN):
        return "lorabake writes it itself, and verify relies on it"
    if name in (*DATA_HASHES, LEGACY_HASH):
        return "it is computed from the tensors"
    if name in (LAYERS, *MODEL_KEYS, *LOOSE):
        return "it says how weights are stored, and programs decode them by it"
    return None


def changed(own: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Set fields, or remove those whose new value is None."""
    result = dict(own)
    for name, text in changes.items():
        result.pop(whole_name(name), None)
        if text is not None:
            result[whole_name(name)] = text
    return result
