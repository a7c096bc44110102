"""Draw with Stable Diffusion's UNets: a plain loop of its own, with one network of one model in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from lorabake.errors import RecipeError
from lorabake.planning import Plan
from lorabake.reference.arrays import Files
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.verification.findings import SampleOptions
from lorabake.verification.samples.artist import Artist, Results, Variant
from lorabake.verification.samples.networks import TEXT_ENCODERS, Configs, build, tokenizer
from lorabake.verification.samples.parts import given_tokenizer
from lorabake.verification.samples.pictures import Setting, Words, decode, denoise, encode

STEPS, GUIDANCE = 25, 7.5


class UNets(Artist):
    """Draw with a UNet, CLIP and a VAE."""

    def __init__(
        self,
        plan: Plan,
        baked: Checkpoint,
        made: Configs,
        files: Files,
        prompts: tuple[str, ...],
        options: SampleOptions,
    ) -> None:
        super().__init__(plan, baked, files, prompts, options)
        self.configs = made
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
        self._kept: tuple[str, int, Any] | None = None
        self.encoders = [name for name in TEXT_ENCODERS if name in plan.sources.key_map.placed]
        self.tokenizers = {name: self._tokenizer(name) for name in self.encoders}

    def settings(self) -> dict[str, str]:
        """Tell how the pictures were made, in words."""
        width, height = self.setting.size
        return {
            "scheduler": "DDIM",
            "prediction": str(self.schedule.get("prediction_type", "epsilon")),
            "steps": str(self.setting.steps),
            "size": f"{width} × {height}",
            "guidance": f"{self.setting.guidance:g}",
        }

    def _draw(self, work: list[Variant]) -> Results:
        """Encode with all models, then denoise with all, then decode, so that only one network is in memory."""
        words: dict[tuple[Variant, int], Words] = {}
        for variant in work:
            networks = {name: self._network(name, variant) for name in self.encoders}
            for number in range(len(self.prompts)):
                words[variant, number] = encode(
                    networks, self.tokenizers, self.prompts[number], self.negative, self.setting.device
                )
        results = Results()
        for variant in work:
            unet = self._network("unet", variant)
            for number in range(len(self.prompts)):
                tick = partial(self.tick, self.label(variant, number))
                results.latents[variant.name, number] = denoise(
                    unet,
                    self.schedule,
                    words[variant, number],
                    self.seed + number,
                    self.setting,
                    tick,
                )
            del unet
        for variant in work:
            vae = self._network("vae", variant)
            for number in range(len(self.prompts)):
                latents = results.latents[variant.name, number]
                results.pictures[variant.name, number] = decode(vae, latents, self.setting.device)
            del vae
        return results

    def vocabularies(self) -> Iterator[tuple[str, Any, int]]:
        """Yield each text encoder and its tokenizer; the header says how many tokens the encoder knows."""
        for name in self.encoders:
            embedding = self.plan.sources.key_map.modules[name].get("text_model.embeddings.token_embedding")
            if embedding is not None:
                yield name, self.tokenizers[name], embedding.views["weight"].shape[0]

    def _tokenizer(self, encoder: str) -> Any:
        """Read the tokenizer that the recipe names; else make CLIP's, which SD 2.x and OpenCLIP pad with "!"."""
        given = given_tokenizer(self.plan, encoder.replace("text_encoder", "tokenizer"), "CLIPTokenizer")
        if given is not None:
            return given
        bang = encoder == "text_encoder_2" or self.plan.sources.key_map.architecture.name == "sd2"
        return tokenizer("!" if bang else "<|endoftext|>")

    def _network(self, component: str, variant: Variant) -> Any:
        """Build one network of one model, or take the one before where it is the same."""
        sources = self.infos(variant)
        is_base = variant.factors is None or component not in self.touched
        if is_base and self._kept is not None and self._kept[:2] == (component, id(sources)):
            return self._kept[2]
        self._kept = None  # before another takes its place in memory
        network = build(component, self.plan.sources.key_map, sources, self.configs, self.files)
        self.apply(network, component, variant)
        network = network.to(self.setting.device)
        if is_base:
            self._kept = component, id(sources), network
        return network
