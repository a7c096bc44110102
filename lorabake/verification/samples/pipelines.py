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
from dataclasses import replace
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np

from lorabake.errors import first_line
from lorabake.reference.arrays import Files
from lorabake.verification.converted import Seen
from lorabake.verification.findings import SampleOptions, SettingValue
from lorabake.verification.samples.assembly import Assembly
from lorabake.verification.samples.building import fill
from lorabake.verification.samples.drawing import Artist, Denoised, Networks, Variant
from lorabake.verification.samples.kit import Kit, keys_of
from lorabake.verification.samples.loading import LoadFile
from lorabake.verification.samples.refusals import CannotDrawError

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
        self, there: Seen, made: Kit, files: Files, prompts: tuple[str, ...], options: SampleOptions
    ) -> None:
        device = options.device or "cpu"
        self.kit, self.assembly = made, Assembly(made, device)
        super().__init__(there, files, prompts, options)
        self.known = signature(made.pipeline.__call__).parameters
        self.steps = options.steps or self.said.steps or self.known["num_inference_steps"].default
        defaults = {name: each.default for name, each in self.known.items()}
        self.guide = next((name for name in GUIDANCE if defaults.get(name) is not None), "")
        if self.guidance is None and self.guide:
            self.guidance = made.arguments.get(self.guide, defaults[self.guide])
        self.encoders = [name for name, part in made.networks.items() if part.is_encoder]
        decoders = sorted((name for name, part in made.networks.items() if part.is_decoder), key=len)
        self.decoder = decoders[0] if decoders else None  # vae before audio_vae
        self.denoisers = [name for name in made.networks if name not in self.encoders and name != self.decoder]
        shows = self.decoder is not None and bool(made.networks[self.decoder].keys)
        self.decoders = [self.decoder] if self.decoder is not None and shows else []
        self._seen = (0, 0)

    def settings(self) -> dict[str, SettingValue]:
        """Tell how the pictures were made."""
        tables = [f"{part.name} ({part.by_tables})" for part in self.kit.networks.values() if part.by_tables]
        return {
            "pipeline": self.kit.pipeline.__name__,
            "scheduler": type(self.kit.others.get("scheduler")).__name__,
            "steps": self.steps,
            "size": self._seen,
            **({"guidance": self.guidance} if self.guidance is not None else {}),
            **({} if self.decoders else {"pictures": "the first channels of the latents: there is no VAE"}),
            **({"names": f"by lorabake's tables: {', '.join(tables)}"} if tables else {}),
        }

    def vocabularies(self) -> Iterator[tuple[str, Any, int]]:
        """Yield each text encoder that has an embedding of tokens, and its tokenizer."""
        for name, made in self.kit.others.items():
            encoder = self.assembly.hollow.get(name.replace("tokenizer", "text_encoder"))
            embedding = getattr(encoder, "get_input_embeddings", lambda: None)()
            if name.startswith("tokenizer") and made is not None:
                rows = getattr(embedding, "num_embeddings", None)
                if rows is not None:
                    yield name.replace("tokenizer", "text_encoder"), made, rows

    @property
    def load_file(self) -> LoadFile:
        """Return what loads a LoRA's file into a network: the pipeline's own loader."""
        return self.assembly.load_file

    def is_of_base(self, name: str) -> bool:
        """Tell whether a network's tensors are the base's, or the checkpoint's, and not from elsewhere."""
        return self.kit.networks[name].infos is None

    def build(self, name: str, variant: Variant) -> Any:
        """Build one network of a variant, without LoRAs, on the CPU."""
        part, tables = self.kit.networks[name], self.tables(variant)
        if tables is not self.plan.sources.key_map and part.infos is None and name in tables.placed:
            part = replace(part, keys=keys_of(tables, name))
        return fill(part, self.infos(variant), tables, self.files)

    # -- the three calls -------------------------------------------------------------------------------

    def encode(self, networks: Networks, variant: Variant, number: int) -> list[Any]:
        """Hear what the text encoders make of a prompt: the results of each call of `encode_prompt`."""
        heard: list[Any] = []

        def listen(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
            result = self.kit.pipeline.encode_prompt(pipeline, *args, **kwargs)
            heard.append(copy.deepcopy(result))
            return result

        pipeline = self.assembly.pipeline(networks, encode_prompt=listen)
        for name in self.denoisers:
            getattr(pipeline, name).forward = _stop
        self._call(pipeline, variant, number)
        return heard

    def denoise(
        self, networks: Networks, words: list[Any], variant: Variant, number: int, tick: Callable[[], None]
    ) -> Denoised:
        """Take the noise of a seed away; what is to be decoded is (latents, more, named)."""
        answers = iter(copy.deepcopy(words))
        latents: list[tuple[Any, ...]] = []

        def decode(*args: Any, **kwargs: Any) -> Any:
            latents.append((*args, kwargs))
            raise _Stopped

        pipeline = self.assembly.pipeline(networks, encode_prompt=lambda *args, **kwargs: next(answers))
        if self.decoder is not None:
            getattr(pipeline, self.decoder).decode = decode
        made = self._call(pipeline, variant, number, tick)
        if not latents:
            latents.append((next(_tensors(made)), {}))
        return Denoised(_array(latents[0][0]), latents[0])

    def decode(self, networks: Networks, made: Denoised) -> Pixels:
        """Decode to a picture: of a video its middle frame; without a VAE, the latents' first channels."""
        import torch

        *args, kwargs = made.arguments
        with torch.no_grad():
            if networks and self.decoder is not None:
                decoded = networks[self.decoder].decode(*args, **kwargs)
                shown = next(_tensors(decoded)).cpu() / 2 + 0.5
            else:
                shown = _channels(args[0].cpu())
        if shown.ndim == 5:  # (1, channels, frames, height, width)
            shown = shown[:, :, shown.shape[2] // 2]
        levels = shown[0, :3].float().clamp(0, 1).nan_to_num(0).permute(1, 2, 0).numpy()
        picture = np.asarray((levels * 255).round(), np.uint8)
        self._seen = picture.shape[1], picture.shape[0]
        return picture

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
