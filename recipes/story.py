"""Tell a story with a small Llama: greedy, in plain torch, from a folder with weights, config and tokens.

    python recipes/story.py FOLDER [--prompt "Once upon a time"] [--tokens 60]

Small on purpose: it shows that a baked folder is an ordinary model, and what the bake changed.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import embedding, linear, scaled_dot_product_attention, silu


class Story:
    """Hold a model's tensors and its tokens."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = load_file(folder / "model.safetensors")
        self.tokens = json.loads((folder / "tok512_vocab.json").read_text())

    def tell(self, prompt: str, count: int) -> str:
        """Continue the prompt by the likeliest token, `count` times or until the story ends."""
        ids = self.encode(prompt)
        for _ in range(count):
            ids.append(int(self.logits(torch.tensor(ids)).argmax()))
            if ids[-1] in (self.config["bos_token_id"], self.config["eos_token_id"]):
                ids.pop()
                break
        return self.decode(ids[1:]).strip()

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Score every token as the next one."""
        table = self.weights["model.embed_tokens.weight"]
        x = embedding(ids, table)
        for layer in range(self.config["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            x = x + self.attention(self.norm(x, at + "input_layernorm"), at + "self_attn.")
            x = x + self.feed_forward(self.norm(x, at + "post_attention_layernorm"), at + "mlp.")
        return linear(self.norm(x, "model.norm")[-1], self.weights.get("lm_head.weight", table))

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Scale each position to a root mean square of one (RMSNorm)."""
        mean = x.square().mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + self.config["rms_norm_eps"]) * self.weights[name + ".weight"]

    def project(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Apply one linear layer: these are what the LoRA changes."""
        return linear(x, self.weights[name + ".weight"])

    def attention(self, x: torch.Tensor, at: str) -> torch.Tensor:
        """Mix positions; several query heads share one head of keys and values."""
        size = self.config["head_dim"]
        q, k, v = (self.project(x, at + f"{n}_proj").view(len(x), -1, size).transpose(0, 1) for n in "qkv")
        mixed = scaled_dot_product_attention(
            self.rotate(q)[None], self.rotate(k)[None], v[None], is_causal=True, enable_gqa=True
        )
        return self.project(mixed[0].transpose(0, 1).flatten(1), at + "o_proj")

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Turn pairs (i, i + size/2) by an angle that grows with the position (rotary embedding)."""
        half = x.shape[-1] // 2
        speed = self.config["rope_parameters"]["rope_theta"] ** (-torch.arange(half) / half)
        angle = torch.arange(x.shape[-2])[:, None] * speed
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)

    def feed_forward(self, x: torch.Tensor, at: str) -> torch.Tensor:
        """Think about each position alone (SwiGLU)."""
        gate = silu(self.project(x, at + "gate_proj"))
        return self.project(gate * self.project(x, at + "up_proj"), at + "down_proj")

    def encode(self, text: str) -> list[int]:
        """Split a text into tokens: join the two neighbours that make the best token, as long as any do."""
        best = {token["piece"]: number for number, token in enumerate(self.tokens)}
        pieces = list(" " + text)
        while pairs := [(best[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in best]:
            _, i = min(pairs)  # the tokens are listed by falling score
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
        return [self.config["bos_token_id"], *(best[piece] for piece in pieces)]

    def decode(self, ids: list[int]) -> str:
        """Join the tokens' texts; `<0x0A>` stands for a byte."""
        pieces = (self.tokens[number]["piece"] for number in ids)
        return "".join(chr(int(p[3:5], 16)) if p.startswith("<0x") else p for p in pieces)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Tell a story with a small Llama.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--tokens", type=int, default=60)
    given = parser.parse_args()
    print(Story(given.folder).tell(given.prompt, given.tokens))
