"""ControlNets of Flux.1 as diffusers names them (InstantX, Shakker Labs, Jasper). Each is a base by itself."""

from lorabake.keymap.table import Architecture, Component, Has, Layout, SpecName

CONTROLNET_FLUX = Architecture(
    name="controlnet_flux",
    title="ControlNet of Flux.1",
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
                        Has("transformer_blocks.0.norm1_context.linear.weight", ndim=2),
                    ),
                ),
            ),
            dotted=("controlnet.",),
        ),
    ),
    spec=(SpecName("flux-1-dev/controlnet", "1024x1024"),),
    code="https://github.com/black-forest-labs/flux",
)
