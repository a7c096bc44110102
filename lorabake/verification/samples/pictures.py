"""Make pictures with networks: encode prompts, take noise away step by step, decode.

A plain loop of its own, the same for every model that is compared, so that nothing but the weights differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lorabake.configs import Loop

if TYPE_CHECKING:
    import torch

    from lorabake.verification.findings import Pixels


@dataclass(frozen=True, slots=True)
class Words:
    """Hold an encoded prompt and its opposite, the opposite first.

    `states` is (2, tokens, width), `pooled` (2, width) or None.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Setting:
    """Say how pictures are made; `size` is (width, height) in pixels, `factor` pixels a latent."""

    steps: int
    size: tuple[int, int]
    guidance: float
    device: str
    factor: int


def encode(
    encoders: Mapping[str, Any], tokenizers: Mapping[str, Any], prompt: str, negative: str, device: str, loop: Loop
) -> Words:
    """Encode a prompt with one text encoder or two, as the family's loop says."""
    import torch

    states, pooled = [], None
    for name, encoder in encoders.items():
        words = tokenizers[name](
            [negative, prompt], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            out = encoder(words.input_ids.to(device), output_hidden_states=True)
        states.append(out.hidden_states[-2] if loop.is_penultimate else out.last_hidden_state)
        pooled = getattr(out, "text_embeds", pooled)
    joined = torch.cat(states, dim=-1)
    if loop.zeros_for_no_words and not negative and pooled is not None:
        joined[0], pooled[0] = 0, 0
    return Words(joined, pooled)


def denoise(
    unet: Any,
    scheduler_config: Mapping[str, Any],
    words: Words,
    seed: int,
    setting: Setting,
    loop: Loop,
    tick: Callable[[], None],
) -> NDArray[np.float32]:
    """Take the noise of a seed away with DDIM; return latents (channels, height, width).

    A model for inpainting or depth gets a mask of everything and an empty picture: it paints all of it.
    """
    import torch
    from diffusers import DDIMScheduler

    maker: Any = DDIMScheduler  # its methods have no types
    scheduler = maker.from_config(dict(scheduler_config))
    scheduler.set_timesteps(setting.steps)
    width, height = (side // setting.factor for side in setting.size)
    generator = torch.Generator().manual_seed(seed)
    channels = unet.config.out_channels
    latents = torch.randn(1, channels, height, width, generator=generator).to(setting.device)
    extra = torch.zeros(2, unet.config.in_channels - channels, height, width, device=setting.device)
    if extra.shape[1] == channels + 1:  # inpainting: the mask comes first
        extra[:, 0] = 1
    more = _conditions(words, setting, loop)
    for time in scheduler.timesteps:
        with torch.no_grad():
            both = torch.cat([torch.cat([latents] * 2), extra], dim=1)
            low, high = unet(both, time, words.states.to(setting.device), added_cond_kwargs=more).sample.chunk(2)
        latents = scheduler.step(low + setting.guidance * (high - low), time, latents).prev_sample
        tick()
    return np.asarray(latents[0].cpu().numpy(), np.float32)


def _conditions(words: Words, setting: Setting, loop: Loop) -> dict[str, Any] | None:
    """Give a model that asks for it the size and the crop, and the size again, or a score."""
    import torch

    if words.pooled is None:
        return None
    width, height = setting.size
    ids: list[list[float]] = [[height, width, 0, 0, height, width]] * 2
    if loop.scores is not None:
        ids = [[height, width, 0, 0, score] for score in reversed(loop.scores)]
    times = torch.tensor(ids, dtype=torch.float32, device=setting.device)
    return {"text_embeds": words.pooled.to(setting.device), "time_ids": times}


def decode(vae: Any, latents: NDArray[np.float32], device: str) -> Pixels:
    """Turn latents into a picture (height, width, 3) of 8 bits; what is no number becomes black."""
    import torch

    scaled = torch.from_numpy(latents)[None].to(device) / vae.config.scaling_factor
    with torch.no_grad():
        picture = vae.decode(scaled).sample[0].cpu()
    levels = (picture / 2 + 0.5).clamp(0, 1).nan_to_num(0).permute(1, 2, 0).numpy()
    return np.asarray((levels * 255).round(), np.uint8)
