"""Wan 2.1 and 2.2: T2V, I2V, FLF2V, VACE, Animate; a 2.2 pipeline has two transformers; UMT5, VAE.

Animate's motion encoder has names in Wan's own layout only, because diffusers also reshapes its tensors.
"""

from lorabake.components import text
from lorabake.components.transformer import DOTTED, FLAT, FOLDER, SINGLE_FILE
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Bare, Component, Has, Lacks, Layout, Row, Sized, SpecName

NATIVE = (
    Has("head.modulation", ndim=3),
    Has("blocks.0.self_attn.q.weight", ndim=2),
    Has("patch_embedding.weight", ndim=5),
)
DIFFUSERS = (
    Has("condition_embedder.time_proj.weight", ndim=2),
    Has("blocks.0.attn1.to_q.weight", ndim=2),
    Has("patch_embedding.weight", ndim=5),
    Lacks("patch_short.weight"),
)

# Layouts, in this order: wan, diffusers.
ATTENTION = (
    Row(("q", "to_q")),
    Row(("k", "to_k")),
    Row(("v", "to_v")),
    Row(("o", "to_out.0")),
    Row(("k_img", "add_k_proj")),
    Row(("v_img", "add_v_proj")),
    Row(("norm_k_img", "norm_added_k")),
)
BLOCK = (
    Row(("self_attn", "attn1"), ATTENTION),
    Row(("cross_attn", "attn2"), ATTENTION),
    Row(("ffn.0", "ffn.net.0.proj")),
    Row(("ffn.2", "ffn.net.2")),
    Row(("norm2", "norm3")),
    Row(("norm3", "norm2")),
    Row((Bare("modulation"), Bare("scale_shift_table"))),
    Row(("before_proj", "proj_in")),
    Row(("after_proj", "proj_out")),
)
ROWS = (
    Row(("blocks.{}", "blocks.{}"), BLOCK),
    Row(("vace_blocks.{}", "vace_blocks.{}"), BLOCK),
    Row(("text_embedding.0", "condition_embedder.text_embedder.linear_1")),
    Row(("text_embedding.2", "condition_embedder.text_embedder.linear_2")),
    Row(("time_embedding.0", "condition_embedder.time_embedder.linear_1")),
    Row(("time_embedding.2", "condition_embedder.time_embedder.linear_2")),
    Row(("time_projection.1", "condition_embedder.time_proj")),
    Row(("img_emb.proj.0", "condition_embedder.image_embedder.norm1")),
    Row(("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj")),
    Row(("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2")),
    Row(("img_emb.proj.4", "condition_embedder.image_embedder.norm2")),
    Row(("head.head", "proj_out")),
    Row((Bare("head.modulation"), Bare("scale_shift_table"))),
    Row(
        ("face_adapter.fuser_blocks.{}", "face_adapter.{}"),
        (
            Row(("linear1_q", "to_q")),
            Row(("linear1_kv", ("to_k", "to_v"))),
            Row(("linear2", "to_out")),
            Row(("q_norm", "norm_q")),
            Row(("k_norm", "norm_k")),
        ),
    ),
    Row(("face_encoder.conv1_local.conv", "face_encoder.conv1_local")),
    Row(("face_encoder.conv2.conv", "face_encoder.conv2")),
    Row(("face_encoder.conv3.conv", "face_encoder.conv3")),
)

Q = ("blocks.0.self_attn.q.weight", "blocks.0.attn1.to_q.weight")
PATCHES = ("patch_embedding.weight",)
PICTURE = ("blocks.0.cross_attn.k_img.weight", "blocks.0.attn2.add_k_proj.weight")
FACE = ("face_encoder.conv1_local.conv.weight", "face_encoder.conv1_local.weight")
VACE = ("vace_blocks.0.self_attn.q.weight", "vace_blocks.0.attn1.to_q.weight")

WAN = Architecture(
    name="wan",
    title="Wan",
    task="text-to-video",
    components=(
        Component(
            name="transformer",
            layouts=(Layout("wan", SINGLE_FILE, NATIVE), Layout("diffusers", FOLDER, DIFFUSERS)),
            rows=ROWS,
            dotted=DOTTED,
            flat=FLAT,
        ),
        Component(
            name="transformer_2",
            layouts=(Layout("wan", (), NATIVE), Layout("diffusers", ("transformer_2/",), DIFFUSERS)),
            rows=ROWS,
            dotted=("transformer_2.", *DOTTED),
            flat=FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    spec=(
        SpecName("", "960x960", (Sized(FACE),)),  # Animate
        SpecName("wan-2_2-ti2v-5b", "960x960", (Sized(Q, 0, 3072),)),
        SpecName("wan-2_1-vace-14b", "960x960", (Sized(VACE, 0, 5120),)),
        SpecName("wan-2_1-vace-1_3b", "960x960", (Sized(VACE, 0, 1536),)),
        SpecName("wan-2_1-image2video-14b", "640x640", (Sized(PICTURE), Sized(Q, 0, 5120))),
        SpecName("wan-2_1-image2video-1_3b", "640x640", (Sized(PICTURE), Sized(Q, 0, 1536))),
        SpecName("wan-2_2-image2video-14b", "960x960", (Sized(PATCHES, 1, 36), Sized(Q, 0, 5120))),
        SpecName("wan-2_1-text2video-14b", "960x960", (Sized(PATCHES, 1, 16), Sized(Q, 0, 5120))),
        SpecName("wan-2_1-text2video-1_3b", "640x640", (Sized(PATCHES, 1, 16), Sized(Q, 0, 1536))),
        SpecName("wan-2_1-flf2v-14b", "960x960", is_stated=True),
        SpecName("wan2.1", is_stated=True),
    ),
    code="https://github.com/Wan-Video/Wan2.1",
)
