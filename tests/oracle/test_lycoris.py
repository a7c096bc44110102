"""Every algorithm of LyCORIS: what its modules compute in training is what lorabake bakes.

The weight that a module trains is read off its forward pass, one unit input at a time: LyCORIS's own merge counts the
scale of LoHa and LoKr twice, which `test_merging_with_lycoris_counts_the_scale_twice` shows.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorabake import VerifyOptions, load_recipe, verify
from tests import builders as b

lycoris = pytest.importorskip("lycoris")

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
OPTIONS = VerifyOptions(stages=("structure", "weights"))

LAYERS: dict[str, Any] = {
    "linear": lambda: torch.nn.Linear(8, 16),
    "conv1d": lambda: torch.nn.Conv1d(8, 16, 3),
    "conv2d": lambda: torch.nn.Conv2d(8, 16, 3),
    "conv2d 1×1": lambda: torch.nn.Conv2d(8, 16, 1),
    "conv3d": lambda: torch.nn.Conv3d(8, 16, 2),
}
ALGORITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoCon": ("LoConModule", {}),
    "LoCon, Tucker": ("LoConModule", {"use_tucker": True}),
    "LoCon, rsLoRA": ("LoConModule", {"rs_lora": True}),
    "LoCon, DoRA": ("LoConModule", {"weight_decompose": True}),
    "LoCon, DoRA by column": ("LoConModule", {"weight_decompose": True, "wd_on_out": False}),
    "LoHa": ("LohaModule", {}),
    "LoHa, Tucker": ("LohaModule", {"use_tucker": True}),
    "LoHa, DoRA": ("LohaModule", {"weight_decompose": True}),
    "LoHa, DoRA by column": ("LohaModule", {"weight_decompose": True, "wd_on_out": False}),
    "LoKr": ("LokrModule", {"lora_dim": 1, "factor": 2}),
    "LoKr, both": ("LokrModule", {"lora_dim": 1, "factor": 4, "decompose_both": True}),
    "LoKr, Tucker": ("LokrModule", {"lora_dim": 1, "factor": 2, "use_tucker": True}),
    "LoKr, whole": ("LokrModule", {"lora_dim": 100, "factor": 2, "full_matrix": True}),
    "LoKr, unbalanced": ("LokrModule", {"lora_dim": 1, "factor": 2, "unbalanced_factorization": True}),
    "LoKr, DoRA": ("LokrModule", {"lora_dim": 1, "factor": 2, "weight_decompose": True}),
    "LoKr, DoRA by column": (
        "LokrModule",
        {"lora_dim": 1, "factor": 2, "weight_decompose": True, "wd_on_out": False},
    ),
    "GLoRA": ("GLoRAModule", {}),
    "IA3": ("IA3Module", {}),
    "IA3 of inputs": ("IA3Module", {"train_on_input": True}),
    "full": ("FullModule", {}),
    "diagonal OFT": ("DiagOFTModule", {}),
    "diagonal OFT, constrained": ("DiagOFTModule", {"constraint": 0.05}),
    "diagonal OFT, rescaled": ("DiagOFTModule", {"rescaled": True}),
    "BOFT": ("ButterflyOFTModule", {"lora_dim": 2}),
    "BOFT, constrained and rescaled": ("ButterflyOFTModule", {"lora_dim": 2, "constraint": 0.05, "rescaled": True}),
}


AT_STRENGTH_0 = {name for name in ALGORITHMS if "DoRA" in name or "rescaled" in name}
"""What LyCORIS changes at strength 0, too."""


def module_class(name: str) -> Any:
    import lycoris.modules as modules

    for module in ("locon", "loha", "lokr", "glora", "ia3", "full", "diag_oft", "boft", "norms", "dylora"):
        found = getattr(__import__(f"lycoris.modules.{module}", fromlist=[name]), name, None)
        if found is not None:
            return found
    raise LookupError(f"{modules} has no {name}")


def wrap(algorithm: str, layer: torch.nn.Module, seed: int = 1) -> Any:
    """Put an algorithm on a layer, with random parameters, alpha 1 and rank 2."""
    name, options = ALGORITHMS[algorithm]
    options = {"lora_dim": 2, "alpha": 1, **options}
    torch.manual_seed(seed)
    module = module_class(name)("lora_unet_layer", layer, 1.0, **options)
    with torch.no_grad():
        for parameter_name, parameter in module.named_parameters():
            if parameter_name.startswith("org_module"):
                continue
            if parameter_name in ("dora_scale", "rescale"):
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
            elif isinstance(layer, torch.nn.modules.conv._ConvNd) or parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.5)
    return module.eval()


def trained_weight(layer: Any, module: Any) -> torch.Tensor:
    """Return the weight that the forward pass of the adapted layer has."""
    return weights_at(layer, module, 1.0)[0]


def weights_at(layer: Any, module: Any, *strengths: float) -> list[torch.Tensor]:
    """Read W off the forward pass at each multiplier: one unit input a column, the bias taken off."""
    weight = layer.weight.detach().clone()
    shape, found = tuple(weight.shape), []
    module.apply_to()
    columns = prod(shape[1:])
    with torch.no_grad():
        inputs = torch.eye(columns, dtype=weight.dtype).reshape(columns, *shape[1:])
        for module.multiplier in strengths:
            answers = layer(inputs) - layer(torch.zeros_like(inputs[:1]))
            found.append(answers.reshape(columns, shape[0]).T.reshape(shape))
    return found


def tensors_of(module: Any) -> dict[str, torch.Tensor]:
    state = module.custom_state_dict() or module.state_dict()
    return {name: tensor.detach().float().contiguous() for name, tensor in state.items()}


def bake(folder: Path, base: dict[str, torch.Tensor], module: Any) -> dict[str, torch.Tensor]:
    b.save(folder / "base.safetensors", base)
    tensors = {f"lora_unet_layer.{name}": tensor for name, tensor in tensors_of(module).items()}
    b.save(folder / "lora.safetensors", tensors)
    return load_file(b.bake_sd1(folder))


def parameters(layer: Any) -> dict[str, torch.Tensor]:
    return {f"layer.{name}": parameter.detach().clone() for name, parameter in layer.named_parameters()}


STRENGTHS = (-1.0, 0.0, 0.3, 0.5, 1.0, 2.0)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_a_module_computes_at_a_strength_is_baked(algorithm: str, kind: str, tmp_path: Path) -> None:
    """By the definition on the way from W to what was trained; with `semantics: lycoris` as its multiplier has it."""
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    base = parameters(layer)
    module = wrap(algorithm, layer)
    found, tensors = weights_at(layer, module, *STRENGTHS), tensors_of(module)
    trained, before = found[STRENGTHS.index(1.0)], base["layer.weight"]
    assert (trained - before).abs().max() > 3e-3, "the adapter changes nothing"
    copies, loras = dict[str, torch.Tensor](), []
    for semantics in (None, "lycoris"):
        for strength in STRENGTHS:
            name = f"layer{len(loras)}"
            copies |= {key.replace("layer", name): tensor.clone() for key, tensor in base.items()}
            b.save(tmp_path / f"{name}.safetensors", {f"lora_unet_{name}.{slot}": t for slot, t in tensors.items()})
            entry = {"path": f"{name}.safetensors", "strength": strength}
            loras.append(entry | ({"semantics": semantics} if semantics else {}))
    b.save(tmp_path / "base.safetensors", copies)
    baked = load_file(b.bake_sd1(tmp_path, loras=loras))
    verification = verify(load_recipe(tmp_path / "recipe.yaml"), options=OPTIONS)
    assert verification.is_true, verification.findings
    for number, (strength, own) in enumerate(zip(STRENGTHS, found, strict=True)):
        due = before + strength * (trained - before)
        for place, wanted in ((number, due), (number + len(STRENGTHS), own)):
            torch.testing.assert_close(baked[f"layer{place}.weight"], wanted, rtol=2e-5, atol=4e-5)
            if algorithm == "full":
                bias = base["layer.bias"] + strength * tensors["diff_b"]
                torch.testing.assert_close(baked[f"layer{place}.bias"], bias, rtol=2e-5, atol=2e-5)
            else:
                assert torch.equal(baked[f"layer{place}.bias"], base["layer.bias"])
    if algorithm in AT_STRENGTH_0:
        assert not torch.equal(baked[f"layer{len(STRENGTHS) + STRENGTHS.index(0.0)}.weight"], before)


def test_norms_are_baked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = torch.nn.LayerNorm(8)
    base = parameters(layer)
    module = module_class("NormModule")("lora_unet_layer", layer, 1.0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    inputs = torch.randn(5, 8)
    module.apply_to()
    wanted = layer(inputs)
    baked = bake(tmp_path, base, module)
    found = torch.nn.functional.layer_norm(inputs, (8,), baked["layer.weight"], baked["layer.bias"])
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("algorithm", ["LoHa", "LoKr"])
def test_merging_with_lycoris_counts_the_scale_twice(algorithm: str) -> None:
    """alpha 1 and rank 2: the trained delta has the scale 1/2, that of LyCORIS's merge 1/4; hence no comparison."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 16)
    base = layer.weight.detach().clone()
    name, options = ALGORITHMS[algorithm]
    module = module_class(name)("lora_unet_layer", layer, 1.0, **{**options, "lora_dim": 2, "alpha": 1})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    merged = module.get_merged_weight()[0].detach() - base
    trained = trained_weight(layer, module) - base
    ratio = (merged / trained).median()
    assert float(ratio) == pytest.approx(0.5, rel=1e-3)


class Net(torch.nn.Module):
    """A linear layer and a convolution that LyCORIS's extraction looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(12, 10, bias=False)
        self.conv = torch.nn.Conv2d(6, 10, 3, bias=False)


def test_an_extracted_lora_with_all_of_its_residual_is_the_fine_tune(tmp_path: Path) -> None:
    """LyCORIS extracts rank 2 and, with no sparsity, everything that it misses: baked, they are the tuned model."""
    torch.manual_seed(0)
    base, tuned = Net(), Net()
    extract = pytest.importorskip("lycoris.utils").extract_diff
    options = {"linear_mode_param": 2, "conv_mode_param": 2, "use_bias": True, "sparsity": 0.0, "small_conv": False}
    tensors = extract([], [], base, tuned, "fixed", **options)
    assert {key.rpartition(".")[2] for key in tensors} >= {"bias_indices", "bias_values", "bias_size"}
    b.save(tmp_path / "lora.safetensors", tensors)
    b.save(tmp_path / "base.safetensors", {key: tensor.clone() for key, tensor in base.state_dict().items()})
    baked = load_file(b.bake_sd1(tmp_path))
    for key, tensor in tuned.state_dict().items():
        torch.testing.assert_close(baked[key], tensor, rtol=0, atol=1e-3)  # the extraction is stored in float16
    for strength in (-1.0, 0.3, 2.0):
        baked = load_file(b.bake_sd1(tmp_path, loras=[{"path": "lora.safetensors", "strength": strength}]))
        for key, tensor in tuned.state_dict().items():
            due = (1 - strength) * base.state_dict()[key] + strength * tensor
            torch.testing.assert_close(baked[key], due, rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_dylora_is_saved_as_one_lora_whose_readers_have_a_smaller_scale(kind: str, tmp_path: Path) -> None:
    """At full rank LyCORIS trains with alpha over the number of blocks; its file means alpha over the rank."""
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    base = parameters(layer)
    module = module_class("DyLoraModule")("lora_unet_layer", layer, 1.0, lora_dim=4, alpha=1, block_size=2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    trained = module.get_diff_weight(rank=2)[0].detach()
    assert set(module.custom_state_dict()) == {"alpha", "lora_up.weight", "lora_down.weight"}
    change = bake(tmp_path, base, module)["layer.weight"] - base["layer.weight"]
    torch.testing.assert_close(change, trained.reshape(change.shape) / 2, rtol=2e-5, atol=2e-5)
