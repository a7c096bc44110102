"""RFD4-Proteina as diffusers names it: it makes proteins."""

from lorabake.components import transformer
from lorabake.keymap.table import Architecture, Component, Has, Layout

RFD4_PROTEINA = Architecture(
    name="rfd4_proteina",
    title="RFD4-Proteina",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "diffusers",
                    transformer.ANY,
                    (
                        Has("transformer_layers.0.mhba.mha.to_q.weight", ndim=2),
                        Has("pair_repr_builder.adaln.to_beta.weight", ndim=2),
                    ),
                ),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
    ),
)
