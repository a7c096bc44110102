"""PEFT's other methods: an adapter of random parameters, saved by PEFT, merged by PEFT and baked by lorabake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorabake import VerifyOptions, load_recipe, verify
from lorabake.errors import LorabakeError
from lorabake.verification.findings import Status
from tests import builders as b

peft = pytest.importorskip("peft")

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
OPTIONS = VerifyOptions(stages=("structure", "weights"))


class Net(torch.nn.Module):
    """Two linear layers, a convolution, a norm and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = torch.nn.Embedding(20, 16)
        self.fc = torch.nn.Linear(16, 32)
        self.norm = torch.nn.LayerNorm(32)
        self.out = torch.nn.Linear(32, 16)
        self.conv = torch.nn.Conv2d(4, 8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.out(self.norm(self.fc(self.emb(tokens))))
        return hidden + self.conv(hidden.reshape(1, 4, -1, 4)).mean()


LAYERS = ["fc", "out"]
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoHa": ("LoHaConfig", {"r": 3, "alpha": 5}),
    "LoHa on a convolution": ("LoHaConfig", {"r": 3, "alpha": 5, "target_modules": ["conv"]}),
    "LoHa on a convolution, with cores": (
        "LoHaConfig",
        {"r": 3, "alpha": 5, "target_modules": ["conv"], "use_effective_conv2d": True},
    ),
    "LoKr": ("LoKrConfig", {"r": 2, "alpha": 5}),
    "LoKr, both decomposed": ("LoKrConfig", {"r": 1, "alpha": 5, "decompose_both": True, "decompose_factor": 4}),
    "LoKr, whole: alpha counts": ("LoKrConfig", {"r": 32, "alpha": 5}),
    "LoKr on a convolution": (
        "LoKrConfig",
        {"r": 1, "alpha": 5, "target_modules": ["conv"], "use_effective_conv2d": True},
    ),
    "rank and alpha patterns": ("LoHaConfig", {"r": 3, "rank_pattern": {"out": 2}, "alpha_pattern": {"fc": 7}}),
    "IA3": ("IA3Config", {"feedforward_modules": ["out"]}),
    "IA3 on a convolution": ("IA3Config", {"target_modules": ["conv"], "feedforward_modules": []}),
    "OFT": ("OFTConfig", {"oft_block_size": 8, "r": 0, "use_cayley_neumann": False}),
    "OFT by the series": ("OFTConfig", {"oft_block_size": 8, "r": 0, "use_cayley_neumann": True}),
    "OFT by a series of 3": (
        "OFTConfig",
        {"oft_block_size": 4, "r": 0, "use_cayley_neumann": True, "num_cayley_neumann_terms": 3},
    ),
    "OFT, one block shared": (
        "OFTConfig",
        {"oft_block_size": 8, "r": 0, "use_cayley_neumann": False, "block_share": True},
    ),
    "BOFT": ("BOFTConfig", {"boft_block_size": 4, "boft_n_butterfly_factor": 1}),
    "HRA": ("HRAConfig", {"r": 4}),
    "HRA, orthogonal": ("HRAConfig", {"r": 4, "apply_GS": True}),
    "HiRA": ("HiraConfig", {"r": 3}),
    "MiSS": ("MissConfig", {"r": 8}),
    "MiSS, with a remainder": ("MissConfig", {"r": 6}),
    "MiSS, mini": ("MissConfig", {"r": 8, "mini_r": 4, "init_weights": "mini"}),
    "MiSS, bat": ("MissConfig", {"r": 8, "init_weights": "bat"}),
    "AdaLoRA": ("AdaLoraConfig", {"init_r": 4, "target_r": 2, "total_step": 10, "lora_alpha": 7}),
    "C3A": ("C3AConfig", {"block_size": 8}),
    "DeLoRA": ("DeloraConfig", {"r": 4}),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 40}),
    "RoAd 1": ("RoadConfig", {"variant": "road_1", "group_size": 8}),
    "RoAd 2": ("RoadConfig", {"variant": "road_2", "group_size": 8}),
    "RoAd 4": ("RoadConfig", {"variant": "road_4", "group_size": 8}),
    "LN tuning": ("LNTuningConfig", {"target_modules": ["norm"]}),
    "an embedding": ("LoraConfig", {"r": 3, "lora_alpha": 5, "target_modules": ["emb"]}),
    "an embedding and more": ("LoraConfig", {"r": 3, "lora_alpha": 5, "target_modules": ["emb", "fc"]}),
}


def adapter(folder: Path, name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Save a base and an adapter in `folder`; return what PEFT makes of them in float64."""
    cls, options = METHODS[name]
    torch.manual_seed(0)
    net = Net().to(dtype)
    b.save(folder / "base.safetensors", {key: tensor.clone() for key, tensor in net.state_dict().items()})
    config = getattr(peft, cls)(**{"target_modules": LAYERS, **options})
    model = peft.get_peft_model(net.float(), config)
    frozen = set(load_file(folder / "base.safetensors"))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and key.removeprefix("base_model.model.") not in frozen:
                noise = torch.randn_like(parameter)
                parameter.copy_(
                    1 + 0.2 * noise if "ia3_l" in key or "boft_s" in key or "road" in key else noise * 0.3
                )
    model.save_pretrained(folder / "adapter")
    exact = Net().double()
    exact.load_state_dict(load_file(folder / "base.safetensors"))
    merged = peft.PeftModel.from_pretrained(exact, folder / "adapter").double().merge_and_unload()
    return {key: tensor.detach() for key, tensor in merged.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_peft_is_baked(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    wanted = adapter(tmp_path, name, dtype)
    before = load_file(tmp_path / "base.safetensors")
    changed = {key for key in before if not torch.allclose(before[key].double(), wanted[key], atol=1e-4)}
    assert changed, "the adapter changes nothing"
    after = load_file(b.bake_sd1(tmp_path, loras=["adapter"]))
    for key in changed:
        size = wanted[key].abs().max().expand(wanted[key].shape) * 8  # PEFT computes some of it in float32, too
        b.assert_rounded_once(after[key], wanted[key], terms=[size])
    assert {key for key in before if not torch.equal(before[key], after[key])} <= changed
    findings = verify(load_recipe(tmp_path / "recipe.yaml"), options=OPTIONS).findings
    assert not [each for each in findings if each.status is Status.FAIL]
    half = load_file(b.bake_sd1(tmp_path, loras=[{"path": "adapter", "strength": 0.5}]))
    for key in changed:
        middle = (before[key].double() + wanted[key]) / 2
        b.assert_rounded_once(half[key], middle, terms=[middle.abs().max().expand(middle.shape) * 8])


def test_every_method_without_its_configuration_is_refused(tmp_path: Path) -> None:
    for name in ("OFT", "HRA", "RoAd 1", "FourierFT", "AdaLoRA"):
        adapter(tmp_path, name, torch.float32)
        (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "alone.safetensors")
        with pytest.raises(LorabakeError, match=r"no adapter_config\.json says"):
            b.bake_sd1(tmp_path, loras=["alone.safetensors"])
