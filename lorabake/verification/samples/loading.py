"""Let diffusers and PEFT load LoRAs into networks, at the recipe's strengths.

They are independent implementations, with names of their own for every module. What they cannot load, or would leave
a part of out, is a CannotLoadError; then the formulas place the weights (`placing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

from lorabake.errors import first_line
from lorabake.keymap.patterns import is_quick
from lorabake.keymap.view import View
from lorabake.matching.patches import Patch
from lorabake.planning import Plan
from lorabake.sources.loras import LoraSource
from lorabake.verification.samples.placing import Factors, named, submodule
from lorabake.verification.samples.refusals import CannotLoadError

if TYPE_CHECKING:
    import torch

LoadFile = Callable[[Any, str, LoraSource, str], None]
"""Load a LoRA's file into a network, its component, under an adapter's name."""


class Loaders:
    """Let diffusers or PEFT load each LoRA into the networks that it changes."""

    def __init__(self, plan: Plan, load_file: LoadFile) -> None:
        self.plan, self.load_file = plan, load_file
        self.patches: dict[int, list[Patch]] = {}
        for patch in plan.patches:
            self.patches.setdefault(patch.lora, []).append(patch)

    def load(self, network: torch.nn.Module, component: str, factors: Factors) -> None:
        """Load every LoRA's part for one network, at the recipe's strengths times `factors`.

        Raise CannotLoadError where a library cannot load a part of what the recipe applies.
        """
        from peft.tuners.lora import LoraLayer

        if not all(step.summed for step in self.plan.steps):
            raise CannotLoadError(f"the recipe's method, {self.plan.sources.recipe.method.name}, is no sum")
        loaded: list[str] = []
        for index, lora in enumerate(self.plan.sources.loras):
            wanted = self._wanted(network, component, index)
            if not wanted:
                continue
            check_configs(lora)
            adapter = f"lora_{index}"
            try:
                if lora.config is not None:
                    _load_peft(network, lora, adapter)
                else:
                    _check_file(lora)
                    self.load_file(network, component, lora, adapter)
            except CannotLoadError:
                raise
            except Exception as error:
                raise CannotLoadError(f"{lora.name}: {first_line(error)}") from error
            layers = {
                name: module
                for name, module in network.named_modules()
                if isinstance(module, LoraLayer) and adapter in module.scaling
            }
            if missing := sorted(wanted.keys() - layers.keys()):
                raise CannotLoadError(f"{lora.name}: {len(missing)} modules would be left out, such as {missing[0]}")
            for name, layer in layers.items():
                scaling: dict[str, float] = layer.scaling
                scaling[adapter] *= wanted.get(name, 0.0) * factors[index]
            loaded.append(adapter)
        for module in network.modules():
            if isinstance(module, LoraLayer):  # each library leaves only the last one that it loaded active
                module.set_adapter([adapter for adapter in loaded if adapter in module.scaling])

    def _wanted(self, network: torch.nn.Module, component: str, index: int) -> dict[str, float]:
        """Return the network's modules that one LoRA changes, and its strength there."""
        key_map = self.plan.sources.key_map
        wanted: dict[str, float] = {}
        own = [patch for patch in self.patches.get(index, []) if key_map.owner.get(patch.view.keys[0]) == component]
        if not own:
            return {}
        there = self._there(network, component)
        for patch in own:
            if patch.kind.name != "lora" or patch.has_dora or "mid" in patch.tensors:
                what = "DoRA" if patch.has_dora else "a Tucker core" if "mid" in patch.tensors else patch.kind.title
                lora = self.plan.sources.loras[index].name
                raise CannotLoadError(f"{lora}: {what} follows other rules in diffusers and PEFT")
            found = {path: view.rows for path, view in there.items() if _covers(patch.view, view)}
            if sum(found.values()) != patch.view.rows:
                raise CannotLoadError(f"{patch.module} has no module of its own in diffusers' {component}")
            wanted |= dict.fromkeys(found, patch.strength)
        return wanted

    def _there(self, network: torch.nn.Module, component: str) -> dict[str, View]:
        """List the network's modules that have a weight in the base, and where."""
        there: dict[str, View] = {}
        for name, module in named(self.plan.sources.key_map, component).items():
            if "weight" in module.views and (found := submodule(network, name)):
                there[found[0]] = module.views["weight"]
        return there


def _covers(whole: View, part: View) -> bool:
    """Tell whether a module that a LoRA changes holds another one: a fused one holds those that it is split into."""
    return all(
        any(each.key == own.key and each.start <= own.start and own.stop <= each.stop for each in whole.regions)
        for own in part.regions
    )


def check_configs(lora: LoraSource) -> None:
    """Refuse what PEFT should not be given: a module of Python's to import, or patterns that it would try for ever.

    diffusers gives PEFT what a file's metadata say, too.
    """
    configs = [lora.config] if lora.config is not None else [*lora.component_configs.values()]
    for config in configs:
        if config.fields.get("megatron_config"):
            raise CannotLoadError(f"{lora.name}: its configuration names a module for PEFT to import")
        if slow := next((each for each in _patterns(config.fields) if not is_quick(each)), None):
            raise CannotLoadError(f"{lora.name}: its pattern {slow!r:.60} may take PEFT without end")


def _patterns(fields: Mapping[str, object]) -> Iterator[str]:
    """Yield all regular expressions that PEFT finds in a configuration; lists are of names."""
    for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save", "feedforward_modules"):
        if isinstance(text := fields.get(name), str):
            yield text
    for value in fields.values():
        yield from value if isinstance(value, dict) else ()
    listed = fields.get("layers_pattern")
    yield from (str(each) for each in listed) if isinstance(listed, list) else ()


def _check_file(lora: LoraSource) -> None:
    """Refuse what the libraries' loaders would not read as one SafeTensors file."""
    if lora.checkpoint.is_folder or len(lora.checkpoint.parts[0].files) != 1:
        raise CannotLoadError(f"{lora.name}: not a single file")
    if lora.checkpoint.path.suffix != ".safetensors":
        raise CannotLoadError(f"{lora.name}: a pickle")


def load_parts(pipeline: Any, network: Any, component: str, lora: LoraSource, adapter: str) -> None:
    """Let the loaders of one of diffusers' pipelines, a class, load a LoRA's part for one network."""
    options = {"unet_config": network.config} if component == "unet" else {}
    state, alphas = pipeline.lora_state_dict(str(lora.checkpoint.path), local_files_only=True, **options)
    if not any(key.startswith(f"{component}.") for key in state):
        raise CannotLoadError(f"{lora.name}: diffusers finds nothing for {component}")
    if component == "unet":
        pipeline.load_lora_into_unet(state, network_alphas=alphas, unet=network, adapter_name=adapter)
    else:
        pipeline.load_lora_into_text_encoder(
            state, network_alphas=alphas, text_encoder=network, prefix=component, adapter_name=adapter
        )


def _load_peft(network: Any, lora: LoraSource, adapter: str) -> None:
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    header = lora.checkpoint.parts[0].files[0]
    if header.path.suffix != ".safetensors":
        raise CannotLoadError(f"{lora.name}: a pickle")
    config = LoraConfig.from_pretrained(str(header.path.parent))
    config.inference_mode = True
    with catch_warnings():
        # It warns of the second adapter in one model, which is the purpose here.
        filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
        inject_adapter_in_model(config, network, adapter)
    state = {key.removeprefix("base_model.model."): value.float() for key, value in load_file(header.path).items()}
    result = set_peft_model_state_dict(network, state, adapter_name=adapter)
    if result is not None and result.unexpected_keys:
        raise CannotLoadError(f"{lora.name}: PEFT has no place for {result.unexpected_keys[0]}")


def load_folders(plan: Plan, model: Any) -> Any:
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
