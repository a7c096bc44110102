"""LTX-2: video and audio in one transformer; Gemma 3, two VAEs."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Bare, Component, Has, Layout, Row, SpecName

ATTENTION = (Row(("q_norm", "norm_q")), Row(("k_norm", "norm_k")))

LTX2 = Architecture(
    name="ltx2",
    title="LTX-2",
    task="text-to-video",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "lightricks",
                    transformer.SINGLE_FILE,
                    (Has("audio_patchify_proj.weight", ndim=2), Has("adaln_single.linear.weight", ndim=2)),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (Has("audio_proj_in.weight", ndim=2), Has("time_embed.linear.weight", ndim=2)),
                ),
            ),
            rows=(
                Row(("patchify_proj", "proj_in")),
                Row(("audio_patchify_proj", "audio_proj_in")),
                Row(("adaln_single", "time_embed")),
                Row(("audio_adaln_single", "audio_time_embed")),
                Row(("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift")),
                Row(("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate")),
                Row(("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift")),
                Row(("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate")),
                Row(
                    ("transformer_blocks.{}", "transformer_blocks.{}"),
                    (
                        Row(("attn1", "attn1"), ATTENTION),
                        Row(("attn2", "attn2"), ATTENTION),
                        Row(("audio_attn1", "audio_attn1"), ATTENTION),
                        Row(("audio_attn2", "audio_attn2"), ATTENTION),
                        Row(("audio_to_video_attn", "audio_to_video_attn"), ATTENTION),
                        Row(("video_to_audio_attn", "video_to_audio_attn"), ATTENTION),
                        Row(
                            (
                                Bare("scale_shift_table_a2v_ca_video"),
                                Bare("video_a2v_cross_attn_scale_shift_table"),
                            )
                        ),
                        Row(
                            (
                                Bare("scale_shift_table_a2v_ca_audio"),
                                Bare("audio_a2v_cross_attn_scale_shift_table"),
                            )
                        ),
                    ),
                ),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    spec=(
        SpecName("lightricks-ltx-video-2", "960x960"),
        SpecName("lightricks-ltx-video-2-3", "960x960", is_stated=True),
        SpecName("lightricks-ltx-video-2-5", "960x960", is_stated=True),
    ),
    code="https://github.com/Lightricks/LTX-2",
)
