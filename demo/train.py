"""Train the demo model: a VAE, then a UNet and a text encoder together, then two LoRAs with PEFT.

    python -m demo.train [--work .demo] [--out recipes/demo] [vae base blorp neon export]

Without stages it runs them all; each leaves its weights in the work folder. Everything is seeded, needs no GPU, and
takes three quarters of an hour on two cores. `training.json` records settings, seconds and losses.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from demo.drawings import CHARACTER, Scene, draw, random_scene
from demo.networks import SCALE, SCHEDULE, networks, save_configs, save_ldm
from lorabake.verification.samples.tokenizers import clip_tokenizer

STAGES = ("vae", "base", "blorp", "neon", "export")
Draw = Callable[[np.random.Generator], Scene]


@dataclass(frozen=True)
class Settings:
    """Say how one stage trains; `pictures` are drawn once, `rank`, `alpha` and `layers` are a LoRA's."""

    steps: int
    batch: int
    rate: float
    pictures: int
    seed: int
    rank: int = 0
    alpha: int = 0
    layers: tuple[str, ...] = ()


SETTINGS = {
    "vae": Settings(2200, 16, 2e-3, 6000, 1),
    "base": Settings(3000, 64, 2e-3, 9000, 3),
    # A style lies in how strokes are drawn, so in convolutions; a word in what attention makes of it.
    "neon": Settings(900, 48, 4e-3, 2000, 21, 4, 4, ("conv1", "conv2", "conv_shortcut", "to_out.0")),
    "blorp": Settings(
        700, 48, 4e-3, 2000, 22, 4, 4, ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    ),
}


def anything(generator: np.random.Generator) -> Scene:
    """Choose from all that the VAE must be able to show."""
    shape = CHARACTER if generator.random() < 0.4 else None
    return random_scene(generator, shape, neon=bool(generator.random() < 0.4))


SCENES: dict[str, Draw] = {
    "vae": anything,
    "base": random_scene,
    "neon": lambda generator: random_scene(generator, neon=True),
    "blorp": lambda generator: random_scene(generator, CHARACTER),
    "neon blorp": lambda generator: random_scene(generator, CHARACTER, neon=True),
}


class Log:
    """Print mean losses and keep them for training.json."""

    def __init__(self, folder: Path, stage: str, every: int) -> None:
        self.path, self.stage, self.every = folder / "training.json", stage, every
        self.rows: list[tuple[int, float]] = []
        self.sum, self.began = 0.0, time.time()

    def add(self, step: int, loss: float) -> None:
        """Take the loss of one step."""
        self.sum += loss
        if step % self.every == 0:
            self.rows.append((step, round(self.sum / self.every, 5)))
            print(f"{self.stage} {step}: {self.rows[-1][1]} ({time.time() - self.began:.0f} s)", flush=True)
            self.sum = 0.0

    def save(self) -> None:
        """Write the stage down."""
        known = json.loads(self.path.read_text()) if self.path.exists() else {}
        seconds = round(time.time() - self.began)
        known[self.stage] = {"settings": asdict(SETTINGS[self.stage]), "seconds": seconds, "losses": self.rows}
        self.path.write_text(json.dumps(known) + "\n")


def drawn(stage: str, scenery: str = "") -> tuple[torch.Tensor, list[str]]:
    """Draw a stage's pictures, (count, 3, 64, 64) in [-1, 1], and their captions; `scenery` draws others."""
    settings = SETTINGS[stage]
    generator = np.random.default_rng(settings.seed)
    scenes = [SCENES[scenery or stage](generator) for _ in range(settings.pictures)]
    pictures = np.stack([draw(scene, generator) for scene in scenes])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1, [scene.caption for scene in scenes]


# -- the VAE ------------------------------------------------------------------------------------------------


def train_vae(work: Path) -> None:
    """Train encoder and decoder, then scale the latents to what the UNet expects."""
    settings = SETTINGS["vae"]
    torch.manual_seed(settings.seed)
    _, vae, _ = networks()
    vae = vae.to(memory_format=torch.channels_last)
    pictures, _ = drawn("vae")
    log = Log(work, "vae", 50)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=settings.rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, settings.steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(settings.seed)
    for step in range(1, settings.steps + 1):
        chosen = torch.randint(len(pictures), (settings.batch,), generator=generator)
        wanted = pictures[chosen].contiguous(memory_format=torch.channels_last)
        latent = vae.encode(wanted).latent_dist
        noise = torch.randn(latent.mean.shape, generator=generator)
        made = vae.decode(latent.mean + 0.1 * latent.std.clamp(max=1) * noise).sample
        # What stands out from the picture's median counts more: shapes are small.
        ground = wanted.flatten(2).median(2).values[..., None, None]
        weight = 1 + 4 * ((wanted - ground).abs().amax(1, keepdim=True) > 0.15)
        distance = (made - wanted).abs() + (made - wanted).square()
        loss = (weight * distance).mean() + 1e-3 * latent.kl().mean() / wanted[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        log.add(step, loss.item())
    normalise(vae.eval(), pictures[:1500])
    torch.save(vae.state_dict(), work / "vae.pt")
    log.save()


@torch.no_grad()
def normalise(vae: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Give latents times SCALE mean 0 and variance 1, by the encoder's last layer; the decoder's first undoes it."""
    latents = encoded(vae, pictures) / SCALE
    shift, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) * SCALE
    last, first = vae.quant_conv, vae.post_quant_conv
    last.weight[:4] /= spread[:, None, None, None]
    last.bias[:4] = (last.bias[:4] - shift) / spread
    last.bias[4:] -= 2 * spread.log()  # the logarithms of variances
    first.bias += first.weight[:, :, 0, 0] @ shift
    first.weight *= spread[None, :, None, None]


@torch.no_grad()
def encoded(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Return the latents (count, 4, 8, 8) as the UNet sees them."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(100)]) * SCALE


# -- the UNet and the text encoder --------------------------------------------------------------------------


class Noising:
    """Draw the denoising loss of a batch: predict the noise in latents, given captions, some of them dropped."""

    def __init__(self, latents: torch.Tensor, captions: list[str], words: CLIPTokenizer, settings: Settings) -> None:
        self.latents, self.batch = latents, settings.batch
        self.ids, self.empty = (
            words(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
            for texts in (captions, [""])
        )
        self.alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod
        # Where a shape lies is settled in nearly pure noise, where the plain loss is small: let that count more.
        self.weights = self.alphas.rsqrt() / self.alphas.rsqrt().mean()
        self.generator = torch.Generator().manual_seed(settings.seed)

    def loss(self, unet: UNet2DConditionModel, text: CLIPTextModel, *, dropped: float) -> torch.Tensor:
        """Return the mean squared error of the next batch, weighted by time."""
        chosen = torch.randint(len(self.latents), (self.batch,), generator=self.generator)
        times = torch.randint(1000, (self.batch,), generator=self.generator)
        noise = torch.randn(self.batch, 4, 8, 8, generator=self.generator)
        drop = torch.rand(self.batch, 1, generator=self.generator) < dropped
        kept = self.alphas[times].reshape(-1, 1, 1, 1)
        noisy = kept.sqrt() * self.latents[chosen] + (1 - kept).sqrt() * noise
        states = text(torch.where(drop, self.empty, self.ids[chosen])).last_hidden_state
        errors = (unet(noisy, times, states).sample - noise).square().mean((1, 2, 3))
        return (self.weights[times] * errors).mean()


def train_base(work: Path) -> None:
    """Train the UNet and the text encoder; what is kept is their running mean."""
    settings = SETTINGS["base"]
    torch.manual_seed(settings.seed)
    unet, vae, text = networks()
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True))
    pictures, captions = drawn("base")
    noising = Noising(encoded(vae, pictures), captions, clip_tokenizer(), settings)
    used = noising.ids.unique()
    with torch.no_grad():
        # Words start far apart, and the text encoder learns slowly: else it forgets those that help late, the places.
        for name, parameter in text.named_parameters():
            if "_embedding." in name:
                parameter.mul_(5)
        # Words that no caption holds become zero: they compress well, and a LoRA can give them a meaning.
        table = text.get_input_embeddings().weight
        table.copy_(torch.zeros_like(table).index_copy(0, used, table[used]))
    kept = {"unet": copy.deepcopy(unet), "text": copy.deepcopy(text)}
    averages = [parameter for network in kept.values() for parameter in network.parameters()]
    parameters = [*unet.parameters(), *text.parameters()]
    rates = [settings.rate, settings.rate / 10]
    groups = [{"params": list(network.parameters())} for network in (unet, text)]
    optimizer = torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, settings.steps, pct_start=0.05)
    log = Log(work, "base", 100)
    for step in range(1, settings.steps + 1):
        loss = noising.loss(unet, text, dropped=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - min(0.998, (1 + step) / (10 + step)))
        log.add(step, loss.item())
        if step % 500 == 0 or step == settings.steps:
            torch.save({name: network.state_dict() for name, network in kept.items()}, work / "base.pt")
    log.save()


def trained(work: Path) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """Load the networks that the stages vae and base left."""
    unet, vae, text = networks()
    weights = torch.load(work / "base.pt", weights_only=True)
    unet.load_state_dict(weights["unet"])
    text.load_state_dict(weights["text"])
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True))
    for network in (unet, vae, text):
        network.eval().requires_grad_(False)
    return unet, vae, text


# -- the LoRAs ----------------------------------------------------------------------------------------------


def lora_config(settings: Settings) -> LoraConfig:
    """Say in PEFT's words what a stage adapts."""
    return LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(settings.layers))


def train_lora(work: Path, stage: str) -> None:
    """Train a LoRA on the UNet with PEFT; the style in every other step beside the character, so that they agree."""
    settings = SETTINGS[stage]
    torch.manual_seed(settings.seed)
    unet, vae, text = trained(work)
    pictures, captions = drawn(stage)
    noisings = [Noising(encoded(vae, pictures), captions, clip_tokenizer(), settings)]
    adapters = [[stage]]
    unet.add_adapter(lora_config(settings), stage)
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    if stage == "neon":
        pictures, captions = drawn(stage, "neon blorp")
        noisings.append(Noising(encoded(vae, pictures), captions, clip_tokenizer(), settings))
        adapters.append([stage, "blorp"])
        unet.add_adapter(lora_config(SETTINGS["blorp"]), "blorp")
        set_peft_model_state_dict(unet, torch.load(work / "blorp.pt", weights_only=True), "blorp")
    unet.train()
    optimizer = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, settings.steps, pct_start=0.05)
    log = Log(work, stage, 50)
    for step in range(1, settings.steps + 1):
        turn = step % len(noisings)
        unet.set_adapters(adapters[turn], 1.0)
        loss = noisings[turn].loss(unet, text, dropped=0.05)
        unet.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        log.add(step, loss.item())
    torch.save(get_peft_model_state_dict(unet, adapter_name=stage), work / f"{stage}.pt")
    log.save()


# -- files --------------------------------------------------------------------------------------------------


def export(work: Path, out: Path) -> None:
    """Write what ships: the base as a single file, neon in kohya's format, blorp as a PEFT folder, in float16."""
    unet, vae, text = trained(work)
    out.mkdir(parents=True, exist_ok=True)
    save_ldm(out / "shapes.safetensors", unet, vae, text, about("shapes"))
    save_configs(out / "config", unet, vae, text)
    save_kohya(out / "neon.safetensors", torch.load(work / "neon.pt", weights_only=True), SETTINGS["neon"])
    save_peft(out / "blorp", torch.load(work / "blorp.pt", weights_only=True), SETTINGS["blorp"])
    (out / "training.json").write_text((work / "training.json").read_text())


def about(title: str) -> dict[str, str]:
    """Describe a file in its metadata."""
    return {
        "modelspec.title": title,
        "modelspec.architecture": "stable-diffusion-v1" if title == "shapes" else "stable-diffusion-v1/lora",
        "modelspec.license": "Apache-2.0",
    }


def save_kohya(path: Path, weights: dict[str, torch.Tensor], settings: Settings) -> None:
    """Write a LoRA as kohya's trainers name it: paths with underscores, an alpha beside each pair."""
    tensors: dict[str, torch.Tensor] = {}
    for key, value in weights.items():
        module, _, side = key.removesuffix(".weight").rpartition(".lora_")
        name = "lora_unet_" + module.replace(".", "_")
        tensors[f"{name}.{'lora_down' if side == 'A' else 'lora_up'}.weight"] = value.half().contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(settings.alpha)).half()
    said = {
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(settings.rank),
        "ss_network_alpha": str(settings.alpha),
        "ss_steps": str(settings.steps),
        "ss_network_args": json.dumps({"conv_dim": str(settings.rank), "conv_alpha": str(settings.alpha)}),
    }
    save_file(tensors, path, metadata=about(path.stem) | said)


def save_peft(folder: Path, weights: dict[str, torch.Tensor], settings: Settings) -> None:
    """Write a LoRA as PEFT does, its settings in an order that is the same every time."""
    folder.mkdir(exist_ok=True)
    config = lora_config(settings).to_dict()
    (folder / "adapter_config.json").write_text(json.dumps(config, default=sorted, indent=2, sort_keys=True) + "\n")
    halves = {f"base_model.model.{key}": value.half().contiguous() for key, value in weights.items()}
    save_file(halves, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Run the stages named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--work", type=Path, default=Path(".demo"), help="where each stage leaves its weights")
    parser.add_argument("--out", type=Path, default=Path("recipes/demo"), help="where export writes")
    chosen = parser.parse_args()
    if unknown := set(chosen.stages) - {*STAGES}:
        parser.error(f"no stage is called {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    chosen.work.mkdir(parents=True, exist_ok=True)
    for stage in chosen.stages or STAGES:
        if stage == "vae":
            train_vae(chosen.work)
        elif stage == "base":
            train_base(chosen.work)
        elif stage == "export":
            export(chosen.work, chosen.out)
        else:
            train_lora(chosen.work, stage)


if __name__ == "__main__":
    main()
