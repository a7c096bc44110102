"""LTX-Video (2B and 13B); T5, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Lacks, Layout, Row, SpecName

ATTENTION = (Row(("q_norm", "norm_q")), Row(("k_norm", "norm_k")))

LTX = Architecture(
    name="ltx",
    title="LTX-Video",
    task="text-to-video",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "lightricks",
                    transformer.SINGLE_FILE,
                    (
                        Has("patchify_proj.weight", ndim=2),
                        Has("adaln_single.linear.weight", ndim=2),
                        Has("transformer_blocks.0.attn1.q_norm.weight"),
                        Lacks("audio_patchify_proj.weight"),
                    ),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("proj_in.weight", ndim=2),
                        Has("time_embed.linear.weight", ndim=2),
                        Has("transformer_blocks.0.attn1.norm_q.weight"),
                        Lacks("audio_proj_in.weight"),
                    ),
                ),
            ),
            rows=(
                Row(("patchify_proj", "proj_in")),
                Row(("adaln_single", "time_embed")),
                Row(("transformer_blocks.{}.attn1", "transformer_blocks.{}.attn1"), ATTENTION),
                Row(("transformer_blocks.{}.attn2", "transformer_blocks.{}.attn2"), ATTENTION),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    spec=(SpecName("lightricks-ltx-video", "768x512"),),
    code="https://github.com/Lightricks/LTX-Video",
)
