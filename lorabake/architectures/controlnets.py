"""ControlNets that diffusers and their makers name alike: of Qwen-Image, Sana, Z-Image and more.

Each is a base by itself.
"""

from lorabake.keymap.table import Architecture, Component, Has, Layout

QWEN_IMAGE = Architecture(
    name="controlnet_qwen_image",
    title="ControlNet of Qwen-Image",
    components=(
        Component(
            name="controlnet",
            layouts=(
                Layout(
                    "diffusers",
                    ("controlnet/", ""),
                    (
                        Has("controlnet_x_embedder.weight", ndim=2),
                        Has("controlnet_blocks.0.weight", ndim=2),
                        Has("txt_norm.weight", ndim=1),
                    ),
                ),
            ),
            dotted=("controlnet.",),
        ),
    ),
)

SANA = Architecture(
    name="controlnet_sana",
    title="ControlNet of Sana",
    components=(
        Component(
            name="controlnet",
            layouts=(
                Layout(
                    "diffusers",
                    ("controlnet/", ""),
                    (
                        Has("controlnet_blocks.0.weight", ndim=2),
                        Has("transformer_blocks.0.ff.conv_inverted.weight", ndim=4),
                    ),
                ),
            ),
            dotted=("controlnet.",),
        ),
    ),
)

HUNYUANDIT = Architecture(
    name="controlnet_hunyuandit",
    title="ControlNet of HunyuanDiT",
    components=(
        Component(
            name="controlnet",
            layouts=(
                Layout(
                    "diffusers",
                    ("controlnet/", ""),
                    (
                        Has("controlnet_blocks.0.weight", ndim=2),
                        Has("time_extra_emb.pooler.q_proj.weight", ndim=2),
                    ),
                ),
            ),
            dotted=("controlnet.",),
        ),
    ),
)

Z_IMAGE = Architecture(
    name="controlnet_z_image",
    title="ControlNet of Z-Image",
    components=(
        Component(
            name="controlnet",
            layouts=(
                Layout(
                    "diffusers",
                    ("controlnet/", ""),
                    (
                        Has("control_layers.0.before_proj.weight", ndim=2),
                        Has("control_all_x_embedder.2-1.weight", ndim=2),
                    ),
                ),
            ),
            dotted=("controlnet.",),
        ),
    ),
)

COSMOS = Architecture(
    name="controlnet_cosmos",
    title="ControlNet of Cosmos",
    components=(
        Component(
            name="controlnet",
            layouts=(
                Layout(
                    "diffusers",
                    ("controlnet/", ""),
                    (
                        Has("control_blocks.0.before_proj.weight", ndim=2),
                        Has("control_blocks.0.attn1.to_q.weight", ndim=2),
                    ),
                ),
            ),
            dotted=("controlnet.",),
        ),
    ),
)

SPARSE = Architecture(
    name="controlnet_sparse",
    title="SparseCtrl of AnimateDiff",
    components=(
        Component(
            name="controlnet",
            layouts=(
                Layout(
                    "diffusers",
                    ("controlnet/", ""),
                    (
                        Has("controlnet_cond_embedding.weight", ndim=4),
                        Has("down_blocks.0.motion_modules.0.proj_in.weight", ndim=2),
                    ),
                ),
            ),
            dotted=("controlnet.",),
        ),
    ),
)
