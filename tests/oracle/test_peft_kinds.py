"""PEFT's other methods: an adapter of random parameters, saved by PEFT, merged by PEFT and baked by lorabake."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorabake import VerifyOptions, load_recipe, verify
from lorabake.adapters.waveft import WAVELETS
from lorabake.errors import LorabakeError, SurroundingsError
from lorabake.verification.findings import Status
from tests import builders as b

peft = pytest.importorskip("peft")
Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
OPTIONS = VerifyOptions(stages=("structure", "weights"))


class Net(torch.nn.Module):
    """Two linear layers, convolutions of both sorts and transformers' own, a norm and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = torch.nn.Embedding(20, 16)
        self.fc = torch.nn.Linear(16, 32)
        self.norm = torch.nn.LayerNorm(32)
        self.out = torch.nn.Linear(32, 16)
        self.conv = torch.nn.Conv2d(4, 8, 3)
        self.preconv = torch.nn.Conv2d(4, 4, 3)
        self.grouped = torch.nn.Conv2d(4, 4, 3, groups=2)
        self.conv1 = torch.nn.Conv1d(4, 8, 3)
        self.turned = Conv1D(24, 16)
        self.square = Conv1D(24, 24)
        self.odd = torch.nn.Linear(7, 11)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.out(self.norm(self.fc(self.emb(tokens))))
        hidden = hidden + self.conv(hidden.reshape(1, 4, -1, 4)).mean() + self.conv1(hidden.reshape(1, 4, -1)).mean()
        return self.square(self.turned(hidden))


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
    "IA3 on a convolution whose name ends like a listed one": (
        "IA3Config",
        {"target_modules": ["conv", "preconv"], "feedforward_modules": ["conv"]},
    ),
    "IA3 on Conv1D": ("IA3Config", {"target_modules": ["turned"], "feedforward_modules": []}),
    "IA3 on the inputs of Conv1D": ("IA3Config", {"target_modules": ["turned"], "feedforward_modules": ["turned"]}),
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
    "BOFT, two rounds": ("BOFTConfig", {"boft_block_size": 4, "boft_n_butterfly_factor": 2}),
    "BOFT, three rounds": ("BOFTConfig", {"boft_block_size": 0, "boft_block_num": 4, "boft_n_butterfly_factor": 3}),
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
    "WaveFT": ("WaveFTConfig", {"n_frequency": 40}),
    "WaveFT, sides of odd length": ("WaveFTConfig", {"n_frequency": 40, "target_modules": ["odd"]}),
    **{
        f"WaveFT by {wavelet}": (
            "WaveFTConfig",
            {"n_frequency": 40, "wavelet_family": wavelet, "target_modules": ["fc", "odd"]},
        )
        for wavelet in ("db2", "db10", "sym5", "coif3")
    },
    "WaveFT without a transform": ("WaveFTConfig", {"n_frequency": 40, "use_idwt": False}),
    "SHiRA": ("ShiraConfig", {"r": 3}),
    "GraLoRA": ("GraloraConfig", {"r": 8, "gralora_k": 2, "alpha": 12}),
    "GraLoRA, hybrid": ("GraloraConfig", {"r": 8, "gralora_k": 4, "alpha": 12, "hybrid_r": 3}),
    "GraLoRA on Conv1D": (
        "GraloraConfig",
        {"r": 8, "gralora_k": 4, "alpha": 12, "target_modules": ["turned"], "fan_in_fan_out": True},
    ),
    "VeRA": ("VeraConfig", {"r": 5}),
    "VeRA on Conv1D": ("VeraConfig", {"r": 5, "target_modules": ["turned"], "fan_in_fan_out": True}),
    "RandLoRA": ("RandLoraConfig", {"r": 5, "randlora_alpha": 7}),
    "VeRA, drawn again": ("VeraConfig", {"r": 5, "save_projection": False, "target_modules": ["fc", "out", "odd"]}),
    "VeRA on Conv1D, drawn again": (
        "VeraConfig",
        {"r": 5, "save_projection": False, "target_modules": ["turned"], "fan_in_fan_out": True},
    ),
    "RandLoRA, drawn again": (
        "RandLoraConfig",
        {"r": 5, "randlora_alpha": 7, "save_projection": False, "target_modules": ["fc", "out", "odd"]},
    ),
    "RandLoRA, drawn again, sparse": (
        "RandLoraConfig",
        {"r": 5, "randlora_alpha": 7, "save_projection": False, "sparse": True},
    ),
    "RandLoRA, drawn again, very sparse": (
        "RandLoraConfig",
        {"r": 5, "randlora_alpha": 7, "save_projection": False, "very_sparse": True},
    ),
    "VB-LoRA": ("VBLoRAConfig", {"r": 2, "num_vectors": 10, "vector_length": 8, "topk": 3}),
    "VB-LoRA, the chosen alone": (
        "VBLoRAConfig",
        {"r": 2, "num_vectors": 10, "vector_length": 8, "topk": 3, "save_only_topk_weights": True},
    ),
    "trained tokens": ("TrainableTokensConfig", {"token_indices": [7, 3, 19], "target_modules": ["emb"]}),
    "trained tokens beside a LoRA": ("LoraConfig", {"r": 3, "trainable_token_indices": {"emb": [3, 7]}}),
    "RoAd 1": ("RoadConfig", {"variant": "road_1", "group_size": 8}),
    "RoAd 2": ("RoadConfig", {"variant": "road_2", "group_size": 8}),
    "RoAd 4": ("RoadConfig", {"variant": "road_4", "group_size": 8}),
    "LN tuning": ("LNTuningConfig", {"target_modules": ["norm"]}),
    "OFT on a convolution": (
        "OFTConfig",
        {"oft_block_size": 6, "r": 0, "use_cayley_neumann": False, "target_modules": ["conv"]},
    ),
    "BOFT on a convolution": (
        "BOFTConfig",
        {"boft_block_size": 6, "boft_n_butterfly_factor": 1, "target_modules": ["conv"]},
    ),
    "BOFT on a convolution, two rounds": (
        "BOFTConfig",
        {"boft_block_size": 6, "boft_n_butterfly_factor": 2, "target_modules": ["conv"]},
    ),
    "HRA on a convolution": ("HRAConfig", {"r": 4, "target_modules": ["conv"]}),
    "AdaLoRA on a convolution": (
        "AdaLoraConfig",
        {"init_r": 4, "target_r": 2, "total_step": 10, "target_modules": ["conv"]},
    ),
    "LoHa in one dimension": ("LoHaConfig", {"r": 3, "alpha": 5, "target_modules": ["conv1"]}),
    "LoKr in one dimension": ("LoKrConfig", {"r": 1, "alpha": 5, "target_modules": ["conv1"]}),
    "LoRA in one dimension": ("LoraConfig", {"r": 3, "lora_alpha": 5, "target_modules": ["conv1"]}),
    "AdaLoRA on Conv1D": (
        "AdaLoraConfig",
        {"init_r": 4, "target_r": 2, "total_step": 10, "target_modules": ["turned"], "fan_in_fan_out": True},
    ),
    "LoRA on Conv1D and its bias": ("LoraConfig", {"r": 3, "target_modules": ["turned"], "lora_bias": True}),
    "LoRA on Conv1D and an embedding": ("LoraConfig", {"r": 3, "target_modules": ["turned", "emb"]}),
    "tokens and a square Conv1D": (
        "LoraConfig",
        {"r": 3, "target_modules": ["turned", "square"], "trainable_token_indices": {"emb": [3, 7]}},
    ),
    "LoRA on parameters, by their names": (
        "LoraConfig",
        {
            "r": 3,
            "target_modules": ["out"],
            "target_parameters": ["fc.weight", "odd.weight"],
            "alpha_pattern": {"fc.weight": 9, "odd": 2, "out": 5},
            "rank_pattern": {"odd.weight": 2},
        },
    ),
    "LoRA on a convolution, with fan_in_fan_out": (
        "LoraConfig",
        {"r": 3, "target_modules": ["conv"], "fan_in_fan_out": True},
    ),
    "DoRA": ("LoraConfig", {"r": 3, "lora_alpha": 5, "use_dora": True}),
    "LoRA on Conv1D": ("LoraConfig", {"r": 3, "target_modules": ["turned"], "fan_in_fan_out": True}),
    "BEFT": ("BeftConfig", {}),
    "DEFT": ("DeftConfig", {"r": 3}),
    "DEFT, orthogonal": ("DeftConfig", {"r": 3, "decomposition_method": "qr", "alpha": 5}),
    "DEFT, nothing put in": ("DeftConfig", {"r": 3, "para": True}),
    "DEFT on Conv1D": ("DeftConfig", {"r": 3, "target_modules": ["turned"], "fan_in_fan_out": True}),
    "Super-Tuning": ("SupertuningConfig", {"sparsity": 0.9}),
    "Super-Tuning and a product": ("SupertuningConfig", {"sparsity": 0.9, "r": 2, "lora_alpha": 3}),
    "PVeRA": ("PveraConfig", {"r": 5}),
    "PVeRA, drawn again": ("PveraConfig", {"r": 5, "save_projection": False}),
    "VeLoRA": ("LoraConfig", {"r": 3, "velora_config": peft.VeloraConfig(num_groups=4)}),
    "MonteCLoRA": ("LoraConfig", {"r": 3, "monteclora_config": peft.MontecloraConfig(num_samples=2)}),
    "an embedding": ("LoraConfig", {"r": 3, "lora_alpha": 5, "target_modules": ["emb"]}),
    "an embedding, DoRA": ("LoraConfig", {"r": 3, "lora_alpha": 5, "target_modules": ["emb"], "use_dora": True}),
    "an embedding and more": ("LoraConfig", {"r": 3, "lora_alpha": 5, "target_modules": ["emb", "fc"]}),
}


@pytest.fixture(autouse=True)
def _no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PEFT's BOFT have several rounds: its CUDA extension lays square blocks out along a diagonal, no more."""

    def laid_out(blocks: torch.Tensor) -> list[torch.Tensor]:
        return [torch.stack([torch.block_diag(*each) for each in blocks])]

    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: SimpleNamespace(forward=laid_out))


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
    verification = verify(load_recipe(tmp_path / "recipe.yaml"), options=OPTIONS)
    b.assert_right(verification)


STRENGTHS = (-1.0, 0.0, 0.3, 0.5, 1.0, 2.0)
WITHOUT_STRENGTH = {"LN tuning", "trained tokens"}
"""What PEFT has a layer for that knows no strength, and that its other strengths leave whole."""


def scaled(folder: Path, strength: float) -> tuple[dict[str, torch.Tensor], bool]:
    """Return what PEFT's own merge makes at a strength, and whether any of its layers can be asked for one."""
    exact = Net().double()
    exact.load_state_dict(load_file(folder / "base.safetensors"))
    model = peft.PeftModel.from_pretrained(exact, folder / "adapter").double()
    layers = [each for each in model.modules() if hasattr(each, "scale_layer") or hasattr(each, "set_scale")]
    for layer in layers:
        if hasattr(layer, "scaling") and not isinstance(layer, peft.tuners.adalora.AdaLoraLayer):
            layer.set_scale("default", strength)
        else:
            layer.scale_layer(strength)  # set_scale forgets AdaLoRA's own scale, and fails on rotations
    return {key: tensor.detach() for key, tensor in model.merge_and_unload().state_dict().items()}, bool(layers)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_peft_at_a_strength(name: str, tmp_path: Path) -> None:
    """On the way from W to what was trained; with `semantics: peft`, as PEFT itself has it."""
    trained = adapter(tmp_path, name, torch.float32)
    before, file = (load_file(tmp_path / each) for each in ("base.safetensors", "adapter/adapter_model.safetensors"))
    copies, loras = dict[str, torch.Tensor](), list[dict[str, object]]()
    wanted = dict[str, torch.Tensor]()
    for semantics in (None, "peft"):
        for strength in STRENGTHS:
            copy = f"copy{len(loras)}"
            own, has_law = scaled(tmp_path, strength) if semantics else ({}, False)
            has_law |= bool(semantics) and name in WITHOUT_STRENGTH
            for key, tensor in before.items():
                copies[f"{copy}.{key}"] = tensor.clone()
                by_definition = tensor.double() + strength * (trained[key] - tensor.double())
                wanted[f"{copy}.{key}"] = own[key] if has_law else by_definition
            (tmp_path / copy).mkdir()
            (tmp_path / copy / "adapter_config.json").write_bytes(
                (tmp_path / "adapter/adapter_config.json").read_bytes()
            )
            of_copy = {key.replace("base_model.model.", f"base_model.model.{copy}."): file[key] for key in file}
            b.save(tmp_path / copy / "adapter_model.safetensors", of_copy)
            loras.append({"path": copy, "strength": strength} | ({"semantics": semantics} if semantics else {}))
    b.save(tmp_path / "base.safetensors", copies)
    after = load_file(b.bake_sd1(tmp_path, loras=loras))
    for key, due in wanted.items():
        if torch.allclose(due, copies[key].double(), atol=1e-12):
            assert torch.equal(after[key], copies[key]), key
        else:
            b.assert_rounded_once(after[key], due, terms=[due.abs().max().expand(due.shape) * 8])
    verification = verify(load_recipe(tmp_path / "recipe.yaml"), options=OPTIONS)
    b.assert_right(verification)
    others = [{**lora, "strength": 0.9} for lora in loras]
    told = verify(load_recipe(b.recipe(tmp_path, loras=others)), tmp_path / "out.safetensors", options=OPTIONS)
    faults = [each.check for each in told.findings if each.status is Status.FAIL]
    assert any(check.startswith("weights.") for check in faults), told.findings


def test_every_method_without_its_configuration_is_refused(tmp_path: Path) -> None:
    for name in (
        "OFT",
        "HRA",
        "RoAd 1",
        "FourierFT",
        "AdaLoRA",
        "GraLoRA",
        "WaveFT",
        "VB-LoRA",
        "RandLoRA",
        "trained tokens",
    ):
        adapter(tmp_path, name, torch.float32)
        (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "alone.safetensors")
        with pytest.raises(LorabakeError, match=r"no adapter_config\.json says"):
            b.bake_sd1(tmp_path, loras=["alone.safetensors"])


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "WaveFT by what is no wavelet": (
        "WaveFTConfig",
        {"n_frequency": 40, "wavelet_family": "coif4"},
        "its wavelet is 'coif4', and PEFT has no true filters of that",
    ),
    "WaveFT where no shape tells the sides": (
        "WaveFTConfig",
        {"n_frequency": 40, "target_modules": ["turned"], "fan_in_fan_out": True},
        "fan_in_fan_out is set and its tensors would fit either way",
    ),
    "LoKr of its own order in one dimension": (
        "LoKrConfig",
        {"r": 2, "alpha": 5, "target_modules": ["conv1"]},
        "PEFT trains a whole lokr_w2 of a 1-D convolution",
    ),
    "OFT projected on loading": (
        "OFTConfig",
        {"oft_block_size": 8, "r": 0, "use_cayley_neumann": False, "coft": True, "eps": 0.05},
        "coft is set",
    ),
    "PVeRA drawn anew for each token": (
        "PveraConfig",
        {"r": 5, "sample_at_inference": True},
        "it draws anew for each",
    ),
    "Super-Tuning without its places": (
        "SupertuningConfig",
        {"sparsity": 0.9, "save_precomputed_indices": False},
        "its places are not in the file",
    ),
    "IA3 on the inputs of a grouped convolution": (
        "IA3Config",
        {"target_modules": ["grouped"], "feedforward_modules": ["grouped"]},
        r"it scales 4 inputs, and the base's weight is 4 × 2 × 3",
    ),
    "a square Conv1D that nothing tells": (
        "LoraConfig",
        {"r": 3, "target_modules": ["square", "emb"]},
        "fan_in_fan_out is set and every weight is square",
    ),
    "FourierFT where no shape tells the sides": (
        "FourierFTConfig",
        {"n_frequency": 40, "target_modules": ["turned"]},
        "fan_in_fan_out is set and its tensors would fit either way",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_peft_does_otherwise_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *method, words = REFUSED[name]
    monkeypatch.setitem(METHODS, name, tuple(method))
    adapter(tmp_path, name, torch.float32)
    with pytest.raises(LorabakeError, match=words):
        b.bake_sd1(tmp_path, loras=["adapter"])
    assert not (tmp_path / "out.safetensors").exists()


def test_matrices_drawn_again_depend_on_what_is_left_out(tmp_path: Path) -> None:
    """The widest layer is switched off, and its size still counts; without its place nothing is known."""
    wanted = adapter(tmp_path, "VeRA, drawn again", torch.float32)
    before = load_file(tmp_path / "base.safetensors")
    left_out = [{"path": "adapter", "blocks": {"fc": 0, "out": 1}}]
    after = load_file(b.bake_sd1(tmp_path, loras=left_out))
    assert torch.equal(after["fc.weight"], before["fc.weight"])
    b.assert_rounded_once(after["out.weight"], wanted["out.weight"], terms=[wanted["out.weight"].abs() + 8])
    b.save(tmp_path / "base.safetensors", {key: tensor for key, tensor in before.items() if not key.startswith("fc")})
    with pytest.raises(LorabakeError, match=r"depend on base_model\.model\.fc, which has no place"):
        b.bake_sd1(tmp_path, loras=["adapter"])


def test_matrices_that_were_to_be_saved_are_asked_for(tmp_path: Path) -> None:
    adapter(tmp_path, "VeRA, drawn again", torch.float32)
    place = tmp_path / "adapter" / "adapter_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"save_projection": True}))
    with pytest.raises(LorabakeError, match="its random matrices are not in the file"):
        b.bake_sd1(tmp_path, loras=["adapter"])


def test_wavelets_ask_for_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter(tmp_path, "WaveFT by db2", torch.float32)
    monkeypatch.setattr("lorabake.adapters.waveft.find_spec", lambda name: None)
    with pytest.raises(SurroundingsError, match=r"db2 needs the package PyWavelets"):
        b.bake_sd1(tmp_path, loras=["adapter"])


def test_the_wavelets_are_those_whose_filters_peft_has(tmp_path: Path) -> None:
    pywt = pytest.importorskip("pywt")
    theirs = pytest.importorskip("peft.tuners.waveft.wavelet")
    true = {
        name
        for name in theirs.wavelist()
        if name != "haar"
        and len(theirs.Wavelet(name).rec_lo) == pywt.Wavelet(name).rec_len
        and theirs.Wavelet(name).rec_lo == pytest.approx(pywt.Wavelet(name).rec_lo, abs=1e-9)
    }
    assert true == WAVELETS


class _Chain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 12), torch.nn.Linear(12, 8)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(values).tanh())


def test_adalora_that_gave_up_ranks_keeps_its_scale(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = _Chain()
    b.save(tmp_path / "base.safetensors", {key: tensor.clone() for key, tensor in net.state_dict().items()})
    config = peft.AdaLoraConfig(
        target_modules=["first", "second"],
        init_r=6,
        target_r=2,
        tinit=1,
        tfinal=2,
        deltaT=1,
        total_step=12,
        lora_alpha=5,
    )
    model = peft.get_peft_model(net, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    descent, values, aims = torch.optim.Adam(trained, 0.05), torch.randn(64, 8), torch.randn(64, 8)
    for step in range(12):
        descent.zero_grad()
        (model(values) - aims).square().mean().backward()
        descent.step()
        model.base_model.update_and_allocate(step)
    model.save_pretrained(tmp_path / "adapter")
    left = {key: tensor.shape[0] for key, tensor in load_file(tmp_path / "adapter/adapter_model.safetensors").items()}
    assert {count for key, count in left.items() if key.endswith("lora_E")} - {0, 6}
    wanted = model.double().merge_and_unload().state_dict()
    after = load_file(b.bake_sd1(tmp_path, loras=["adapter"]))
    for key, tensor in after.items():
        assert torch.allclose(tensor.double(), wanted[key], rtol=1e-6, atol=1e-6), key


def test_fourierft_on_gpt2_whose_table_tells_the_sides(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=30, n_positions=8)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "base")
    trained = peft.get_peft_model(model, peft.FourierFTConfig(n_frequency=30, target_modules=["c_attn", "c_fc"]))
    with torch.no_grad():
        for key, parameter in trained.named_parameters():
            if "fourierft" in key:
                parameter.copy_(torch.randn_like(parameter))
    trained.save_pretrained(tmp_path / "adapter")
    exact = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base", dtype=torch.float64)
    wanted = peft.PeftModel.from_pretrained(exact, tmp_path / "adapter").double().merge_and_unload().state_dict()
    path = b.bake_sd1(tmp_path, base="base", loras=["adapter"], output={"path": "out"})
    after = load_file(path / "model.safetensors")
    for key in ("transformer.h.0.attn.c_attn.weight", "transformer.h.0.mlp.c_fc.weight"):
        b.assert_rounded_once(after[key], wanted[key], terms=[wanted[key].abs().max().expand(wanted[key].shape) * 8])
    b.assert_right(verify(load_recipe(tmp_path / "recipe.yaml"), options=OPTIONS))
