"""Draw with diffusers' own pipelines: one way for every family that diffusers has a pipeline for.

A pipeline is one long call: it encodes the prompt, takes the noise away and decodes. Here it runs in three shorter
ones, with only what each needs in memory: all other networks are hollow, without values. Three seams make that
possible. `encode_prompt` is heard while the text encoders are there, and the call ends where it asks the hollow
denoiser for anything; then what was heard is said again to the denoiser, and the call ends at `vae.decode`, whose
arguments are the latents; then the VAE decodes them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np

from lorabake.errors import first_line
from lorabake.planning import Plan
from lorabake.reference.arrays import Files
from lorabake.sources.loras import LoraSource
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.verification.findings import SampleOptions
from lorabake.verification.samples.artist import Artist, Results, Variant
from lorabake.verification.samples.parts import CannotDrawError, Kit, Part, fill, hollow
from lorabake.verification.samples.runtime import CannotLoadError, Loaders

if TYPE_CHECKING:
    from lorabake.verification.findings import Pixels

GUIDANCE = ("guidance_scale", "true_cfg_scale", "distilled_guidance_scale")
"""What pipelines call the guidance: the first that one has a default for."""

ARGUMENTS = {"num_frames": 1, "use_resolution_binning": False, "output_type": "pt"}
"""What every pipeline that knows it is called with, unless `configs/` says otherwise."""


class _Stopped(Exception):  # noqa: N818 - no error: the call has done its part
    """End a pipeline's call where its next part begins."""


class Pipelines(Artist):
    """Draw with the pipeline of a kit."""

    def __init__(
        self, plan: Plan, baked: Checkpoint, made: Kit, files: Files, prompts: tuple[str, ...], options: SampleOptions
    ) -> None:
        super().__init__(plan, baked, files, prompts, options)
        self.kit = made
        self.known = signature(made.pipeline.__call__).parameters
        self.steps = options.steps or self.said.steps or self.known["num_inference_steps"].default
        defaults = {name: each.default for name, each in self.known.items()}
        self.guide = next((name for name in GUIDANCE if defaults.get(name) is not None), "")
        if self.guidance is None and self.guide:
            self.guidance = made.arguments.get(self.guide, defaults[self.guide])
        self.loaders = Loaders(plan, self._load_file)
        self.encoders = [part for part in made.networks.values() if part.is_encoder]
        decoders = sorted(
            (part for part in made.networks.values() if part.is_decoder), key=lambda each: len(each.name)
        )
        self.decoder = decoders[0] if decoders else None  # vae before audio_vae
        self.denoisers = [part for part in made.networks.values() if not part.is_encoder and part is not self.decoder]
        self._hollow = {name: hollow(part, self.device) for name, part in made.networks.items()}
        self._seen = (0, 0)

    def settings(self) -> dict[str, str]:
        """Tell how the pictures were made, in words."""
        tables = [f"{part.name} ({part.by_tables})" for part in self.kit.networks.values() if part.by_tables]
        return {
            "pipeline": self.kit.pipeline.__name__,
            "scheduler": type(self.kit.others.get("scheduler")).__name__,
            "steps": str(self.steps),
            "size": "{} × {}".format(*self._seen),
            **({"guidance": f"{self.guidance:g}"} if self.guidance is not None else {}),
            **({} if self._shows else {"pictures": "the first channels of the latents: there is no VAE"}),
            **({"names": f"by lorabake's tables: {', '.join(tables)}"} if tables else {}),
        }

    def vocabularies(self) -> Iterator[tuple[str, Any, int]]:
        """Yield each text encoder that has an embedding of tokens, and its tokenizer."""
        for name, made in self.kit.others.items():
            encoder = self._hollow.get(name.replace("tokenizer", "text_encoder"))
            embedding = getattr(encoder, "get_input_embeddings", lambda: None)()
            if name.startswith("tokenizer") and made is not None:
                rows = getattr(embedding, "num_embeddings", None)
                if rows is not None:
                    yield name.replace("tokenizer", "text_encoder"), made, rows

    @property
    def _shows(self) -> bool:
        return self.decoder is not None and bool(self.decoder.keys)

    # -- the three calls -------------------------------------------------------------------------------

    def _draw(self, work: list[Variant]) -> Results:
        words: dict[tuple[object, ...], list[Any]] = {}
        for variant in work:
            key = self._key(self.encoders, variant)
            if key not in words:
                networks = self._networks(self.encoders, variant)
                words[key] = [self._encode(networks, variant, number) for number in range(len(self.prompts))]
                del networks
        results, found = Results(), dict[tuple[str, int], Any]()
        kept: tuple[object, dict[str, Any]] = (None, {})
        for variant in work:
            key = self._key(self.denoisers, variant)
            if kept[0] != key:
                kept = None, {}  # before another takes its place in memory
                kept = key, self._networks(self.denoisers, variant)
            for number in range(len(self.prompts)):
                said = words[self._key(self.encoders, variant)][number]
                found[variant.name, number] = self._denoise(kept[1], said, variant, number)
                results.latents[variant.name, number] = _array(found[variant.name, number][0])
        kept = None, {}
        for variant in work:
            key = self._key([self.decoder] if self._shows and self.decoder else [], variant)
            if self._shows and kept[0] != key and self.decoder is not None:
                kept = None, {}
                kept = key, self._networks([self.decoder], variant)
            for number in range(len(self.prompts)):
                picture = self._decode(kept[1], *found[variant.name, number])
                self._seen = picture.shape[1], picture.shape[0]
                results.pictures[variant.name, number] = picture
        return results

    def _encode(self, networks: dict[str, Any], variant: Variant, number: int) -> list[Any]:
        """Hear what the text encoders make of a prompt: the results of each call of `encode_prompt`."""
        heard: list[Any] = []

        def listen(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
            result = self.kit.pipeline.encode_prompt(pipeline, *args, **kwargs)
            heard.append(copy.deepcopy(result))
            return result

        pipeline = self._pipeline(networks, encode_prompt=listen)
        for part in self.denoisers:
            getattr(pipeline, part.name).forward = _stop
        self._call(pipeline, variant, number)
        return heard

    def _denoise(self, networks: dict[str, Any], said: list[Any], variant: Variant, number: int) -> Any:
        """Take the noise of a seed away; return what is to be decoded, (latents, more, named)."""
        answers = iter(copy.deepcopy(said))
        latents: list[Any] = []

        def decode(*args: Any, **kwargs: Any) -> Any:
            latents.append((*args, kwargs))
            raise _Stopped

        pipeline = self._pipeline(networks, encode_prompt=lambda *args, **kwargs: next(answers))
        if self.decoder is not None:
            getattr(pipeline, self.decoder.name).decode = decode
        made = self._call(pipeline, variant, number, tick=partial(self.tick, self.label(variant, number)))
        if not latents:
            latents.append((next(_tensors(made)), {}))
        return latents[0]

    def _decode(self, networks: dict[str, Any], *arguments: Any) -> Pixels:
        """Decode to a picture: of a video its middle frame; without a VAE, the latents' first channels."""
        import torch

        *args, kwargs = arguments
        with torch.no_grad():
            if networks and self.decoder is not None:
                made = networks[self.decoder.name].decode(*args, **kwargs)
                shown = next(_tensors(made)).cpu() / 2 + 0.5
            else:
                shown = _channels(args[0].cpu())
        if shown.ndim == 5:  # (1, channels, frames, height, width)
            shown = shown[:, :, shown.shape[2] // 2]
        levels = shown[0, :3].float().clamp(0, 1).nan_to_num(0).permute(1, 2, 0).numpy()
        return np.asarray((levels * 255).round(), np.uint8)

    def _call(self, pipeline: Any, variant: Variant, number: int, tick: Callable[[], None] | None = None) -> Any:
        """Run a pipeline up to its seam; what the base cannot do, none of the others is asked for."""
        import torch

        def ended(_: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
            if tick is not None:
                tick()
            return values

        width, height = self.size or (None, None)
        wanted = {
            **ARGUMENTS,
            **self.kit.arguments,
            "prompt": self.prompts[number],
            "negative_prompt": self.negative,
            "num_inference_steps": self.steps,
            "generator": torch.Generator().manual_seed(self.seed + number),
            "callback_on_step_end": ended,
            self.guide: self.guidance,
            "width": width,
            "height": height,
        }
        said = {name: value for name, value in wanted.items() if name in self.known and value is not None}
        try:
            return pipeline(**said)
        except _Stopped:
            return None
        except Exception as error:
            if variant.is_checkpoint or variant.factors is not None:
                raise
            raise CannotDrawError(
                f"{self.kit.pipeline.__name__} cannot draw with this base: {first_line(error)}"
            ) from error

    # -- networks --------------------------------------------------------------------------------------

    def _key(self, parts: list[Part], variant: Variant) -> tuple[object, ...]:
        """Tell apart what some networks are in different variants: their tensors and what is applied to them."""
        own = [part for part in parts if part.infos is None]
        if not own:
            return ()
        applied = variant.factors is not None and any(part.name in self.touched for part in own)
        return id(self.infos(variant)), *((variant.factors, variant.round_off) if applied else ())

    def _networks(self, parts: list[Part], variant: Variant) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for part in parts:
            network = fill(part, self.infos(variant), self.plan.sources.key_map, self.files)
            if part.infos is None:
                self.apply(network, part.name, variant)
            made[part.name] = network.to(self.device)
        return made

    def _pipeline(self, networks: dict[str, Any], **seams: Any) -> Any:
        """Put networks into a pipeline whose others are hollow; `seams` take the place of its methods."""
        maker: Any = type(self.kit.pipeline.__name__, (self.kit.pipeline,), seams)
        parts = {**self._hollow, **networks}
        known = signature(self.kit.pipeline.__init__).parameters
        rest = {name: None for name, each in known.items() if each.default is each.empty and name != "self"}
        others = {  # a scheduler counts its steps; a tokenizer is large, and stays as it is
            name: copy.deepcopy(each) if hasattr(each, "config_name") else each
            for name, each in self.kit.others.items()
        }
        given = {**rest, **self.kit.settings, **others, **parts}
        try:
            pipeline = maker(**{name: value for name, value in given.items() if name in known})
        except (ImportError, ValueError, TypeError, AttributeError) as error:
            name = self.kit.pipeline.__name__
            raise CannotDrawError(f"{name} cannot be put together: {first_line(error)}") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _load_file(self, network: Any, component: str, lora: LoraSource, adapter: str) -> None:
        """Let the pipeline's own loader load a LoRA, into the one network that is there."""
        path = lora.checkpoint.path
        if not hasattr(self.kit.pipeline, "load_lora_weights"):
            if hasattr(network, "load_lora_adapter"):
                network.load_lora_adapter(str(path), prefix=component, adapter_name=adapter, local_files_only=True)
                return
            raise CannotLoadError(f"{self.kit.pipeline.__name__} loads no LoRAs")
        # What belongs to networks that are hollow now is loaded when they are there.
        seams = {
            name: classmethod(partial(_only, getattr(self.kit.pipeline, name).__func__, network))
            for name in dir(self.kit.pipeline)
            if name.startswith("load_lora_into_")
        }
        pipeline = self._pipeline({component: network}, **seams)
        more = {f"load_into_{component}": True} if component == "transformer_2" else {}
        pipeline.load_lora_weights(str(path), adapter_name=adapter, local_files_only=True, **more)


def _only(load: Any, network: Any, owner: Any, *args: Any, **kwargs: Any) -> None:
    if any(each is network for each in (*args, *kwargs.values())):
        load(owner, *args, **kwargs)


def _stop(*_: Any, **__: Any) -> Any:
    raise _Stopped


def _tensors(made: Any) -> Iterator[Any]:
    """Yield the tensors of a result, whatever it comes in."""
    import torch

    if isinstance(made, torch.Tensor):
        yield made
    elif isinstance(made, dict):
        for each in made.values():
            yield from _tensors(each)
    elif isinstance(made, (list, tuple)):
        for each in made:
            yield from _tensors(each)
    elif hasattr(made, "sample"):
        yield from _tensors(made.sample)


def _array(tensor: Any) -> Any:
    return np.asarray(tensor[0].float().cpu().numpy(), np.float32)


def _channels(latents: Any) -> Any:
    """Stretch three channels of latents to [0, 1]."""
    shown = latents[:, :3].float()
    low, high = shown.amin(), shown.amax()
    return (shown - low) / (high - low).clamp(min=1e-12)
