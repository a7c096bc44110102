"""Z-Image (base and Turbo); Qwen3, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import VAE_OF_COMFY
from lorabake.keymap.table import Architecture, Component, Has, Lacks, Layout, Row, SpecName

ATTENTION = (
    Row(("attention.qkv", ("attention.to_q", "attention.to_k", "attention.to_v"))),
    Row(("attention.out", "attention.to_out.0")),
    Row(("attention.q_norm", "attention.norm_q")),
    Row(("attention.k_norm", "attention.norm_k")),
)

Z_IMAGE = Architecture(
    name="z_image",
    title="Z-Image",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "native",
                    transformer.SINGLE_FILE,
                    (
                        Has("layers.0.attention.qkv.weight", ndim=2),
                        Has("layers.0.adaLN_modulation.0.weight", ndim=2),
                        Has("cap_embedder.1.weight", ndim=2),
                    ),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("layers.0.attention.to_q.weight", ndim=2),
                        Has("layers.0.adaLN_modulation.0.weight", ndim=2),
                        Has("all_x_embedder.2-1.weight", ndim=2),
                        Lacks("control_layers.0.attention.to_q.weight"),
                    ),
                ),
            ),
            rows=(
                Row(("layers.{}", "layers.{}"), ATTENTION),
                Row(("noise_refiner.{}", "noise_refiner.{}"), ATTENTION),
                Row(("context_refiner.{}", "context_refiner.{}"), ATTENTION),
                Row(("x_embedder", "all_x_embedder.2-1")),
                Row(("final_layer", "all_final_layer.2-1")),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        VAE_OF_COMFY,
    ),
    spec=(SpecName("z-image", "1024x1024"),),
    code="https://github.com/Tongyi-MAI/Z-Image",
)
