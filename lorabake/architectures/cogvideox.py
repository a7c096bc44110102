"""CogVideoX; T5, VAE.

SwissArmyTransformer stores the modulations of both norms in one tensor, in alternating pieces. That tensor has only
SwissArmyTransformer's name here.
"""

from lorabake.components import sat, text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout, Row

COGVIDEOX = Architecture(
    name="cogvideox",
    title="CogVideoX",
    task="text-to-video",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "sat",
                    transformer.SINGLE_FILE,
                    (
                        Has("mixins.adaln_layer.query_layernorm_list.0.weight", ndim=1),
                        Has("transformer.layers.0.attention.query_key_value.weight", ndim=2),
                    ),
                ),
                Layout(
                    "diffusers",
                    transformer.ANY,
                    (
                        Has("patch_embed.text_proj.weight", ndim=2),
                        Has("time_embedding.linear_1.weight", ndim=2),
                    ),
                ),
            ),
            rows=(
                sat.LAYERS,
                *sat.ENDS,
                Row(("mixins.adaln_layer.query_layernorm_list.{}", "transformer_blocks.{}.attn1.norm_q")),
                Row(("mixins.adaln_layer.key_layernorm_list.{}", "transformer_blocks.{}.attn1.norm_k")),
                Row(("time_embed.0", "time_embedding.linear_1")),
                Row(("time_embed.2", "time_embedding.linear_2")),
                Row(("transformer.final_layernorm", "norm_final")),
                Row(("mixins.final_layer.norm_final", "norm_out.norm")),
                Row(("mixins.final_layer.adaLN_modulation.1", "norm_out.linear")),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
)
