"""Apply LoRAs to a network that is already built, as programs do at run time.

diffusers and PEFT load the files where they can: independent implementations, with names of their own for every
module. Where they cannot, or would leave a part out, the weights get what lorabake's formulas make of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

import numpy as np

from lorabake.adapters.shapes import matrix
from lorabake.errors import SurroundingsError, first_line
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.module import Module
from lorabake.keymap.patterns import is_quick
from lorabake.keymap.view import Region, Span, View
from lorabake.matching.patches import Patch
from lorabake.planning import Plan
from lorabake.reference.arrays import Files
from lorabake.reference.codecs import worth
from lorabake.reference.formulas.formula import Array
from lorabake.reference.recompute import Recomputation
from lorabake.sources.loras import LoraSource
from lorabake.verification.samples.networks import submodule

if TYPE_CHECKING:
    import torch

FORMULAS_APPLIED = "lorabake's formulas"
"""Who applies the LoRAs where diffusers and PEFT cannot."""

Factors = tuple[float, ...]
"""One factor a LoRA, on top of the recipe's strengths."""

LoadFile = Callable[[Any, str, LoraSource, str], None]
"""Load a LoRA's file into a network, its component, under an adapter's name."""


class CannotLoadError(Exception):
    """Say why diffusers or PEFT cannot be the reference for a LoRA."""


class Weights:
    """Set a network's weights to what the formulas make of the base's."""

    def __init__(self, plan: Plan, files: Files) -> None:
        self.plan, self.recomputation = plan, Recomputation(plan, files)

    def place(self, network: torch.nn.Module, component: str, factors: Factors, *, round_off: bool) -> None:
        """Put W + Σ factor·δ in place of each baked weight, rounded to the output's dtype if asked."""
        import torch

        spots = self._spots(network, component)
        for step in self.plan.steps:
            if not any(target.key in spots for target in step.targets):
                continue
            made: dict[str, Array] = {}
            for tile in self.recomputation.tiles(step):
                exact = tile.base.copy()
                for change in tile.changes:
                    exact[change.rows] += factors[change.patch.lora] * change.delta
                whole = made.setdefault(tile.target.key, np.empty(step.matrix(tile.target)))
                whole[tile.start : tile.start + len(exact)] = (
                    self.recomputation.rounded(tile, exact) if round_off else exact
                )
            shapes = {target.key: target.shape for target in step.targets}
            for target in step.targets:  # what is stored in units of a scale is worth its values times the scale
                made[target.key] = made[target.key].reshape(matrix(target.shape))
            for target in step.targets:
                if target.encoding is not None:
                    scale = made[target.scale_key].reshape(shapes[target.scale_key])
                    made[target.key] = worth(target.encoding, made[target.key], scale)
            for target in step.targets:
                value = torch.from_numpy(made[target.key].astype(np.float32))
                for spot in spots.get(target.key, ()):
                    with torch.no_grad():
                        spot.fill(value)

    def _spots(self, network: torch.nn.Module, component: str) -> dict[str, list[_Spot]]:
        """Find the parameters of the network that each baked tensor of the component fills."""
        key_map = self.plan.sources.key_map
        targets = [target for step in self.plan.steps for target in step.targets]
        baked = {target.key for target in targets} - {target.scale_key for target in targets}
        wanted = {key for key in baked if key_map.owner.get(key) == component}
        places = dict(network.named_parameters()) | dict(network.named_buffers())
        spots: dict[str, list[_Spot]] = {}
        taken: set[int] = set()
        for name, module in named(key_map, component).items():
            found = submodule(network, name)
            for parameter, view in module.views.items():
                place = places.get(f"{found[0]}.{parameter}" if found else name)
                if place is None or id(place) in taken or not wanted & {*view.keys}:
                    continue
                taken.add(id(place))
                for span in view.spans():
                    spots.setdefault(span.key, []).append(_Spot(place, span, view))
        _, prefix = key_map.placed[component]
        for key in wanted - spots.keys():  # what no table speaks of keeps its name
            place = places.get(key.removeprefix(prefix))
            if place is not None:
                rows = _rows(tuple(place.shape))
                view = View((Region(key, 0, rows),), tuple(place.shape))
                spots[key] = [_Spot(place, span, view) for span in view.spans()]
        if missing := wanted - spots.keys():
            first = sorted(missing)[0]
            raise SurroundingsError(
                f"{len(missing)} tensors have no place in diffusers' {component}, such as {first}"
            )
        return spots


@dataclass(frozen=True, slots=True)
class _Spot:
    """Say which rows of a network's parameter hold which rows of a base tensor, by `span`."""

    place: torch.Tensor
    span: Span
    view: View

    def fill(self, value: torch.Tensor) -> None:
        """Put the rows of a whole tensor, (rows, columns), in place."""
        if self.view.transpose:
            self.place.copy_(value.T.reshape(self.place.shape))
            return
        self.place.reshape(self.view.rows, -1)[self.span.own] = value[self.span.stored]


def named(key_map: KeyMap, component: str) -> Mapping[str, Module]:
    """List a component's modules under the names that diffusers has for them, as far as a layout tells."""
    if any(layout.name == "diffusers" for layout in key_map.component(component).layouts):
        return key_map.modules_in(component, "diffusers")
    return key_map.modules[component]


class Loaders:
    """Let diffusers or PEFT load each LoRA into the networks that it changes."""

    def __init__(self, plan: Plan, load_file: LoadFile | None = None) -> None:
        self.plan, self.load_file = plan, load_file or _load_diffusers
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


def _load_diffusers(network: Any, component: str, lora: LoraSource, adapter: str) -> None:
    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

    path = lora.checkpoint.path
    is_sdxl = component == "text_encoder_2" or "add_embedding" in dict(network.named_children())
    mixin = StableDiffusionXLLoraLoaderMixin if is_sdxl else StableDiffusionLoraLoaderMixin
    options = {"unet_config": network.config} if component == "unet" else {}
    state, alphas = mixin.lora_state_dict(str(path), local_files_only=True, **options)
    if not any(key.startswith(f"{component}.") for key in state):
        raise CannotLoadError(f"{lora.name}: diffusers finds nothing for {component}")
    if component == "unet":
        mixin.load_lora_into_unet(state, network_alphas=alphas, unet=network, adapter_name=adapter)
    else:
        mixin.load_lora_into_text_encoder(
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


def _rows(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1
