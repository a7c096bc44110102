"""What transformers renames when it loads a model: the table against its whole mapping, and against its models.

The models have their default configurations, with few layers, on the device `meta`. What transformers would save of
them has one column, in which each row has a number of its own: where it puts the numbers is where the rows lie.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")

from transformers import CONFIG_MAPPING, conversion_mapping  # noqa: E402
from transformers.core_model_loading import (  # noqa: E402
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    apply_renamings,
    revert_weight_conversion,
)
from transformers.models.auto import modeling_auto  # noqa: E402

from lorabake.components.renamed import RENAMINGS  # noqa: E402
from lorabake.keymap.expansion import KeyMap  # noqa: E402
from lorabake.keymap.names import PEFT_ROOT  # noqa: E402
from lorabake.keymap.renaming import Renaming  # noqa: E402
from lorabake.keymap.spelling import Spellings  # noqa: E402
from lorabake.keymap.view import Region, View  # noqa: E402
from lorabake.sources.family import identify, models_of  # noqa: E402
from tests.tables import infos  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

conversion_mapping.get_checkpoint_conversion_mapping("")  # fills the cache
MAPPING: dict[str, list[Any]] = conversion_mapping._checkpoint_conversion_mapping_cache

# -- every rule ------------------------------------------------------------------------------------------

# transformers' name of a part of a model that no `model_type` of its own has -> that of the whole.
PARTS = {
    "MaskFormerDetrDecoder": "maskformer",
    "PPChart2TableModel": "pp_chart2table",
    "UnlimitedOcrSamVisionEncoder": "unlimited_ocr",
    "UnlimitedOcrVisionEncoder": "unlimited_ocr",
    "mlcd_vision": "mlcd_vision_model",
    "xCLIPTextModel": "xclip_text_model",
    "xCLIPVisionModel": "xclip_vision_model",
}
# What the table leaves out: the first stored name of a rule -> why.
_ORDER = "its rows are put in another order, by heads that a header does not tell"
_PARAMETER = "no module's parameter"
LEFT_OUT = {
    "self_attn.in_proj.weight": _ORDER,
    "attn.in_proj_weight": _ORDER,
    "attn.in_proj_bias": _ORDER,
    "attention.wq.": _ORDER,
    "attention.wk.": _ORDER,
    "wqkv": _ORDER,
    "self_attn.att_proj": "q, k and v of unequal rows: a header does not tell how many are whose",
    "shared_w13_weight": "the rows of gate and up are stored in turn",
    "mlp.w13_dn.weight": "the rows of gate and up are stored in turn",
    "mlp.experts.w13_weight": "the rows of gate and up are stored in turn",
    "mlp.experts.w13_weight_scale": _PARAMETER,
    "attn_res.attn_queries.(d+)": _PARAMETER,
    "mlp.moe_statics.e_score_correction_bias": _PARAMETER,
    "wte.embedding": _PARAMETER,
    "ngram_embedding.shard_*.weight": "one embedding in as many tensors as the configuration says",
    "mlp.gate.weight": "Ernie's routers are stored turned",
    "mlp.gate.weight_1": "Ernie's routers are stored turned",
    "experts.*.down_proj.weight": "Ernie's experts are dealt out to two mixtures",
    "experts.*.gate_proj.weight": "Ernie's experts are dealt out to two mixtures",
    "moe.gate_proj.weight": "stacks of gates and of ups, joined expert by expert",
    ".mixer.experts.gate_and_up_projs": "experts that are stored turned",
    ".mixer.experts.down_projs": "experts that are stored turned",
    "mlp.experts.gate_up_proj": "one name on the disk and in memory: shapes tell which way it lies",
    "mlp.experts.down_proj": "one name on the disk and in memory: shapes tell which way it lies",
}
APART = {"MtpModel": "what guesses tokens ahead is loaded beside the model, from the same file"}
"""What transformers' mapping has that is about no model."""


def left_out(rule: Any) -> bool:
    """Tell whether a rule is one that the table leaves out; no plain rename is."""
    stored = rule._original_source_patterns[0].replace("\\", "")
    return stored in LEFT_OUT and type(rule) not in (WeightRenaming, PrefixChange)


def models(name: str) -> tuple[str, ...]:
    """Return the `model_type` of what transformers' mapping knows under this name; () for what holds for all."""
    if name in CONFIG_MAPPING or name == "legacy":
        return () if name == "legacy" else (name,)
    cls = getattr(transformers, name, None)
    return (cls.config_class.model_type if cls is not None else PARTS.get(name, name),)


def examples(pattern: str) -> Iterator[str]:
    """Yield texts that a regular expression finds: each alternative, 7 for a number, `layers.7` for anything."""
    yield from map("".join, product(*(list(_examples(*each)) for each in re._parser.parse(pattern))))  # type: ignore[attr-defined]


def _examples(sort: Any, what: Any) -> Iterator[str]:
    match str(sort):
        case "LITERAL":
            yield chr(what)
        case "ANY":
            yield "."
        case "SUBPATTERN":
            yield from map("".join, product(*(list(_examples(*each)) for each in what[3])))
        case "BRANCH":
            for branch in what[1]:
                yield from map("".join, product(*(list(_examples(*each)) for each in branch)))
        case "MAX_REPEAT":
            yield "layers.7" if str(what[2][0][0]) == "ANY" else "7"
        case "IN":
            yield chr(what[0][1]) if str(what[0][0]) == "LITERAL" else "7"
        case _:
            yield ""  # a place, or what must not stand there


def names(rule: Any) -> list[str]:
    """Return names of tensors that a rule renames."""
    if isinstance(rule, PrefixChange):
        path = [rule.model_prefix, rule.prefix_to_remove or "", "layers.7.norm.weight"]
        return [".".join(word for word in path if word)]
    texts = [text for pattern in rule.source_patterns for text in examples(pattern.replace("*", r"\d+"))]
    starts = ["block" if text.startswith(".") else "" for text in texts]
    complete = rule.target_patterns[0].endswith((".weight", ".bias"))
    ends = ["proj.weight" if text.endswith(".") else "" if complete else ".weight" for text in texts]
    return ["".join(parts) for parts in zip(starts, texts, ends, strict=True)]


def whole(name: str) -> dict[str, View]:
    return {name: View((Region(name, 0, 4),), (4, 2))}


NAMES = sorted(MAPPING.keys() - APART.keys())


@pytest.mark.parametrize("name", NAMES)
def test_every_rename_is_in_the_table(name: str) -> None:
    rules = conversion_mapping.get_checkpoint_conversion_mapping(name)
    renames = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    keys = [key for rule in renames if not left_out(rule) for key in names(rule)]
    named = [(key, apply_renamings(key, renames)) for key in keys]

    def lacks(table: Renaming) -> list[str]:
        return [f"{key} → {new}" for key, new in named if [[*each] for each in table.forward(whole(key))] != [[new]]]

    tables = [
        replace(each, below=("",))
        for each in RENAMINGS
        if each.of(models(name)) and bool(each.models) == bool(models(name))
    ]
    fewest = min(map(lacks, tables), key=len, default=named)
    assert not fewest, f"lorabake/components/renamed.py lacks, for {name}:\n" + "\n".join(map(str, fewest))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_joined_or_split_goes_by_its_names_in_memory(name: str) -> None:
    for rule in MAPPING[name]:
        if not isinstance(rule, WeightConverter) or left_out(rule):
            continue
        shapes: dict[str, object] = {}
        for text in (text for pattern in rule.source_patterns for text in examples(pattern.replace("*", "NUMBER"))):
            path = "model.layers.7." + ("mlp" if text.startswith(".experts") else "block" if text[0] == "." else "")
            end = "" if text.endswith(("weight", "bias")) else ".weight"
            shapes |= {f"{path}{text}{end}".replace("NUMBER", number): (12, 2) for number in "01"}
        header = infos(shapes)
        key_map = KeyMap.expand(identify(header), header, models(name))
        called = {module.name for module in key_map.named()}
        for text in (text for pattern in rule.target_patterns for text in examples(pattern)):
            place = text.removesuffix(".weight").removesuffix(".bias").lstrip(".")
            assert any(path.endswith(f".{place}") for path in called), f"{name}: {place} of {[*shapes]}"


def test_what_the_table_leaves_out_is_there() -> None:
    rules = [rule for rules in MAPPING.values() for rule in rules]
    assert {
        rule._original_source_patterns[0].replace("\\", "") for rule in rules if left_out(rule)
    } == LEFT_OUT.keys()
    assert APART.keys() <= MAPPING.keys()


# -- every model -----------------------------------------------------------------------------------------


def _set(**values: Any) -> Callable[[Any], None]:
    """Return what sets values in a configuration; `part__name` is a name in a part of it."""

    def run(config: Any) -> None:
        for name, value in values.items():
            *parts, last = name.split("__")
            place = config
            for part in parts:
                place = getattr(place, part)
            setattr(place, last, value)

    return run


def _sapiens2(config: Any) -> None:
    config.head_config = transformers.Sapiens2HeadConfig(
        upsample_out_channels=[8, 8],
        conv_out_channels=[8],
        scale_conv_out_channels=[8],
        scale_final_hidden_sizes=[8, 8],
        scale_final_input_size=8,
    )


def _detr(config: Any) -> None:
    stages = [f"stage{number}" for number in range(1, 5)]
    config.use_timm_backbone, config.backbone = False, None
    config.backbone_config = transformers.ResNetConfig(depths=[1] * 4, out_features=stages)


# What default configurations lack for a model, by `model_type`.
MENDED = {
    "aya_vision": _set(vision_config__num_attention_heads=16),
    "beit": _set(num_hidden_layers=4, out_indices=[1, 2, 3, 4]),
    "conditional_detr": _detr,
    "deepseek_ocr2": _set(text_config__mlp_layer_types=["dense", "sparse"]),
    "deformable_detr": _detr,
    "detr": _detr,
    "dots1": _set(n_routed_experts=2, n_shared_experts=1, moe_intermediate_size=8),
    "emu3": _set(vocabulary_map={"<|extra_200|>": 0, "<image>": 1}),
    "esm": _set(vocab_size=33, pad_token_id=1),
    "hunyuan_v1_moe": _set(head_dim=64, num_experts=2),
    "hunyuan_vl": _set(text_config__head_dim=64),
    "lfm2_moe": _set(layer_types=["conv", "full_attention"]),
    "sapiens2": _sapiens2,
}
NOT_MADE = {
    "Qwen3OmniMoeForConditionalGeneration": "its default configuration lacks sizes in several parts",
    "T5Gemma2Encoder": "its default configuration is another class's",
}
AS_IT_IS = {"gemma3n_text"}
"""Configurations that cannot have fewer layers so."""
FEWER = {"num_experts": 4, "n_routed_experts": 4, "num_local_experts": 4} | dict.fromkeys(
    ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "n_layer", "n_layers", "depth"), 2
)


def small(config: Any) -> Any:
    """Make the parts of a configuration have few layers and experts."""
    values = vars(config)
    for part in values.values():
        if hasattr(part, "model_type"):
            small(part)
    if config.model_type not in AS_IT_IS:
        for name in FEWER.keys() & values.keys():
            if isinstance(values[name], int):
                setattr(config, name, min(FEWER[name], values[name]))
        if isinstance(values.get("layer_types"), list):
            config.layer_types = values["layer_types"][:2]
    MENDED.get(config.model_type, _set())(config)
    return config


def made(name: str) -> Any:
    """Make a model of its default configuration, small, without values."""
    cls = getattr(transformers, name)
    with torch.device("meta"):
        return cls(small(cls.config_class()))


def heads() -> dict[str, list[str]]:
    """Map each `model_type` to classes of it, those with a head first."""
    found: dict[str, list[str]] = {}
    for table in (name for name in vars(modeling_auto) if re.fullmatch(r"MODEL_.*MAPPING_NAMES", name)):
        for model, classes in getattr(modeling_auto, table).items():
            found.setdefault(model, []).extend(classes if isinstance(classes, tuple) else [classes])
    with_head_first = lambda each: ("For" not in each, each)  # noqa: E731
    return {model: sorted(set(classes), key=with_head_first) for model, classes in found.items()}


HEADS = heads()
HEADS |= {name: [name] for name in NAMES if hasattr(transformers, name)}
MADE = {HEADS[name][0] for name in NAMES if name in HEADS}
# Models of which parts are renamed, and not the whole.
COMPOSED = (
    "CHMv2ForDepthEstimation", "CLIPModel", "CLIPSegModel", "ChineseCLIPModel",
    "Cohere2VisionForConditionalGeneration", "ColModernVBertForRetrieval", "ColPaliForRetrieval",
    "CsmForConditionalGeneration", "DeepseekVLForConditionalGeneration",
    "DeepseekVLHybridForConditionalGeneration", "DepthAnythingForDepthEstimation",
    "DepthProForDepthEstimation", "DetrForObjectDetection", "GroundingDinoForObjectDetection",
    "Lfm2VlForConditionalGeneration", "Lfm3VlForConditionalGeneration", "Mask2FormerModel", "MetaClip2Model",
    "MiniCPMV4_6ForConditionalGeneration", "ModernVBertForMaskedLM", "OneFormerModel",
    "Qwen2_5OmniForConditionalGeneration", "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration", "Qwen4ExpForConditionalGeneration", "Sam3Model", "SiglipModel",
    "T5Gemma2ForConditionalGeneration", "UltraVBertForSequenceClassification", "VisionEncoderDecoderModel",
    "VisionTextDualEncoderModel", "ZoeDepthForDepthEstimation",
)  # fmt: skip
CLASSES = sorted({*MADE, *COMPOSED})


def numbered(state: dict[str, Any]) -> dict[str, Any]:
    """Give each row a number of its own, in one column; each expert of a stack has rows of its own."""
    found = {}
    count = 0
    for key, value in state.items():
        shape = tuple(value.shape)
        rows = shape[:2] if len(shape) == 3 and "experts" in key else shape[:1]
        size = torch.Size(rows).numel()
        numbers = torch.arange(count, count + size, dtype=torch.float64)
        found[key] = numbers.reshape(rows + (1,) * (len(shape) - len(rows)))
        count += size
    return found


def read(view: View, tensors: dict[str, Any]) -> Any:
    return torch.cat([tensors[each.key][each.start : each.stop].flatten() for each in view.regions])


def older(model: Any) -> list[Any]:
    """List what reverts names to those of the oldest files, with the prefixes that transformers leaves off today."""
    found: dict[object, Any] = {}
    for rule in conversion_mapping.get_model_conversion_mapping(model, add_legacy=False):
        prefix = (rule.prefix_to_remove, rule.model_prefix) if isinstance(rule, PrefixChange) else None
        found.setdefault(prefix or id(rule), rule)
    return [*found.values()]


def layers(model: Any, state: dict[str, Any]) -> Iterator[str]:
    """Yield the names of a model's layers, and of its stacks of experts."""
    kinds = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d)
    for name, module in model.named_modules():
        if isinstance(module, kinds) or type(module).__name__.endswith("Norm"):
            yield f"{name}.weight"
    yield from (key for key, value in state.items() if key.endswith("_proj") and value.ndim == 3)


def with_or_without_head(model: Any, key: str) -> str:
    """Name a layer as in that model without its head, or as in the same with one, if there is such a model."""
    path = model.base_model_prefix
    if not path or type(model).__name__.endswith("Backbone"):
        return key
    if hasattr(model, path):
        return key.removeprefix(f"{path}.")
    return f"{path}.{key}" if any("For" in each for each in HEADS.get(model.config.model_type, ())) else key


# Layers that only what LEFT_OUT lists would give a place: `model_type` -> their names.
NO_PLACE = {
    "ernie4_5_vl_moe": r".*mlp\.(text|vision)_moe\..*",
    "gradium_phonon_tts": r".*self_attn\.[qkv]_proj",
    "inkling2": r".*experts\.gate_up_proj",
    "inkling2_text": r".*experts\.gate_up_proj",
    "kimi_k25": r".*vision_tower\..*attn\.[qkv]_proj",
    "mistral_large4": r".*vision_tower\..*attention\.[qk]_proj",
    "molmo2": r".*language_model\..*(self_attn\.[qkv]_proj|embed_tokens)",
    "molmo2_text": r".*(self_attn\.[qkv]_proj|embed_tokens)",
    "step3p7": r".*vision_model\..*self_attn\.[qkv]_proj",
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_layer_goes_by_its_names_on_the_disk_and_in_memory(name: str) -> None:
    if name in NOT_MADE:
        pytest.skip(NOT_MADE[name])
    try:
        model = made(name)
    except ImportError as error:
        pytest.skip(str(error).strip().splitlines()[0])
    state = numbered(model.state_dict())
    lacks = {}
    for age, rules in (("today's", None), ("oldest", older(model))):
        if rules is not None:
            model._weight_conversions = rules
        stored = revert_weight_conversion(model, dict(state))
        header = infos({key: ["F64", tuple(value.shape)] for key, value in stored.items()})
        spelled = Spellings(KeyMap.expand(identify(header), header, models_of(model.config.to_dict())))
        wanted = {key: state[key] for key in layers(model, state) if key in state}
        wanted |= {with_or_without_head(model, key): value for key, value in wanted.items()}
        wanted |= {key: value for key, value in stored.items() if key.endswith(".weight")}
        for key, value in wanted.items():
            layer = key.removesuffix(".weight")
            views = [each.views["weight"] for each in spelled.get(PEFT_ROOT + layer, ()) if "weight" in each.views]
            if len(views) != 1 or not torch.equal(read(views[0], stored), value.flatten()):
                lacks[f"{layer} ({age} file)"] = views
    placeless = re.compile(NO_PLACE.get(model.config.model_type, "(?!)") + r" \(.*")
    expected = {layer for layer, views in lacks.items() if placeless.fullmatch(layer) and not views}
    assert {layer: [view.keys[:2] for view in lacks[layer]] for layer in lacks.keys() - expected} == {}
    assert bool(expected) == (model.config.model_type in NO_PLACE)
