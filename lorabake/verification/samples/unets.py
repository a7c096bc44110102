"""Draw with a UNet, text encoders and a VAE, by a plain loop of lorabake's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lorabake.configs import Loop
from lorabake.configs.tokenizers import padding_of
from lorabake.errors import RecipeError
from lorabake.reference.arrays import Files
from lorabake.verification.converted import Seen
from lorabake.verification.findings import SampleOptions, SettingValue
from lorabake.verification.samples.drawing import Artist, Denoised, Networks, Variant
from lorabake.verification.samples.loading import LoadFile, load_parts
from lorabake.verification.samples.networks import TEXT_ENCODERS, Configs, build
from lorabake.verification.samples.pictures import Setting, Words, decode, denoise, encode
from lorabake.verification.samples.tokenizers import clip_tokenizer, given_tokenizer

if TYPE_CHECKING:
    from lorabake.verification.findings import Pixels

STEPS, GUIDANCE = 25, 7.5


class UNets(Artist):
    """Draw as the `loop` of a family says."""

    denoisers = ("unet",)
    decoders = ("vae",)

    def __init__(
        self,
        there: Seen,
        made: Configs,
        loop: Loop,
        files: Files,
        prompts: tuple[str, ...],
        options: SampleOptions,
    ) -> None:
        super().__init__(there, files, prompts, options)
        plan = there.plan
        self.configs, self.loop = made, loop
        side = int(made.parts["vae"].get("sample_size", 512))
        self.steps = options.steps or self.said.steps or STEPS
        self.setting = Setting(
            steps=self.steps,
            size=self.size or (side, side),
            guidance=GUIDANCE if self.guidance is None else self.guidance,
            device=self.device,
            factor=2 ** (len(made.parts["vae"]["block_out_channels"]) - 1),
        )
        step = self.setting.factor * 2 ** (len(made.parts["unet"]["block_out_channels"]) - 1)
        if any(each % step for each in self.setting.size):
            width, height = self.setting.size
            raise RecipeError(
                f"size {width}x{height}: pictures of this model have sides that are multiples of {step}"
            )
        self.schedule = dict(made.parts["scheduler"])
        if self.said.prediction is not None:
            self.schedule["prediction_type"] = self.said.prediction
        elif "v_pred" in plan.sources.base.tensors:
            self.schedule["prediction_type"] = "v_prediction"
        self.encoders = [name for name in TEXT_ENCODERS if name in plan.sources.key_map.placed]
        self.tokenizers = {name: self._tokenizer(name) for name in self.encoders}

    @property
    def load_file(self) -> LoadFile:
        """Return what loads a LoRA's file into a network: a part of the family's pipeline."""
        return lambda *arguments: load_parts(self.configs.pipeline, *arguments)

    def settings(self) -> dict[str, SettingValue]:
        """Tell how the pictures were made."""
        return {
            "scheduler": "DDIM",
            "prediction": str(self.schedule.get("prediction_type", "epsilon")),
            "steps": self.setting.steps,
            "size": self.setting.size,
            "guidance": self.setting.guidance,
        }

    def vocabularies(self) -> Iterator[tuple[str, Any, int]]:
        """Yield each text encoder and its tokenizer; the header says how many tokens the encoder knows."""
        for name in self.encoders:
            embedding = self.plan.sources.key_map.modules[name].get("text_model.embeddings.token_embedding")
            if embedding is not None:
                yield name, self.tokenizers[name], embedding.views["weight"].shape[0]

    def build(self, name: str, variant: Variant) -> Any:
        """Build one network of a variant, without LoRAs, on the CPU."""
        return build(name, self.tables(variant), self.infos(variant), self.configs, self.files)

    def encode(self, networks: Networks, variant: Variant, number: int) -> Words:
        """Return what the text encoders make of a prompt and its opposite."""
        prompt, device = self.prompts[number], self.setting.device
        return encode(networks, self.tokenizers, prompt, self.negative, device, self.loop)

    def denoise(
        self, networks: Networks, words: Words, variant: Variant, number: int, tick: Callable[[], None]
    ) -> Denoised:
        """Take the noise of a seed away; `tick` is called after each step."""
        seed = self.seed + number
        latents = denoise(networks["unet"], self.schedule, words, seed, self.setting, self.loop, tick)
        return Denoised(latents, (latents,))

    def decode(self, networks: Networks, made: Denoised) -> Pixels:
        """Make a picture of it."""
        return decode(networks["vae"], made.latents, self.setting.device)

    def _tokenizer(self, encoder: str) -> Any:
        """Read the tokenizer that the recipe names; else make CLIP's."""
        name = encoder.replace("text_encoder", "tokenizer")
        given = given_tokenizer(self.plan, name, "CLIPTokenizer")
        if given is not None:
            return given
        return clip_tokenizer(padding_of(self.plan.sources.key_map.architecture.name, name))
