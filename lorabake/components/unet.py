"""The UNet of the Stable Diffusion families, as the LDM code and as diffusers name it.

Both code bases number the same modules differently; inside a transformer block they agree. Source of the
pairs: the conversion of CompVis/latent-diffusion checkpoints that diffusers and kohya's trainers perform.
"""

from lorabake.keymap.table import IndexOrder, Lacks, Row

# UNets for videos and Versatile Diffusion have these names, and others besides.
PICTURES = (
    Lacks("down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm1.weight"),
    Lacks("down_blocks.0.temp_attentions.0.proj_in.weight"),
    Lacks("down_blocks.0.downsamplers.0.weight"),
)

# The first layer, which reads 4 channels, or more where a picture or a mask comes with the noise.
CONV_IN = ("input_blocks.0.0.weight", "conv_in.weight")

# What reads a vector beside the text: sizes in SDXL, a picture's embedding in unCLIP.
LABEL = ("label_emb.0.0.weight", "add_embedding.linear_1.weight", "class_embedding.linear_1.weight")

# What LDM's files have beside the UNet, in the order of the alphabet, and what later ones have that predict velocity.
SCHEDULE = (
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "log_one_minus_alphas_cumprod",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
)
MARKERS = ("v_pred", "ztsnr")

# How the names of diffusers' UNets begin, in the order in which they run.
RUN = ("conv_in", "time_", "add_embedding", "down_", "mid_", "up_", "conv_norm_out", "conv_out")

# What a block of diffusers numbers inside itself.
WITHIN = ("to_out", "net", "transformer_blocks")

RESNET = (
    Row(("in_layers.0", "norm1")),
    Row(("in_layers.2", "conv1")),
    Row(("emb_layers.1", "time_emb_proj")),
    Row(("out_layers.0", "norm2")),
    Row(("out_layers.3", "conv2")),
    Row(("skip_connection", "conv_shortcut")),
)

ENDS = (
    Row(("time_embed.0", "time_embedding.linear_1")),
    Row(("time_embed.2", "time_embedding.linear_2")),
    Row(("label_emb.0.0", "add_embedding.linear_1")),
    Row(("label_emb.0.2", "add_embedding.linear_2")),
    Row(("input_blocks.0.0", "conv_in")),
    Row(("out.0", "conv_norm_out")),
    Row(("out.2", "conv_out")),
    Row(("middle_block.0", "mid_block.resnets.0"), RESNET),
    Row(("middle_block.1", "mid_block.attentions.0")),
    Row(("middle_block.2", "mid_block.resnets.1"), RESNET),
)

# Four levels of two resnets each: SD 1.x and SD 2.x (the refiner has attention on fewer of them).
FOUR_LEVELS = (
    *ENDS,
    Row(("input_blocks.1.0", "down_blocks.0.resnets.0"), RESNET),
    Row(("input_blocks.1.1", "down_blocks.0.attentions.0")),
    Row(("input_blocks.2.0", "down_blocks.0.resnets.1"), RESNET),
    Row(("input_blocks.2.1", "down_blocks.0.attentions.1")),
    Row(("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv")),
    Row(("input_blocks.4.0", "down_blocks.1.resnets.0"), RESNET),
    Row(("input_blocks.4.1", "down_blocks.1.attentions.0")),
    Row(("input_blocks.5.0", "down_blocks.1.resnets.1"), RESNET),
    Row(("input_blocks.5.1", "down_blocks.1.attentions.1")),
    Row(("input_blocks.6.0.op", "down_blocks.1.downsamplers.0.conv")),
    Row(("input_blocks.7.0", "down_blocks.2.resnets.0"), RESNET),
    Row(("input_blocks.7.1", "down_blocks.2.attentions.0")),
    Row(("input_blocks.8.0", "down_blocks.2.resnets.1"), RESNET),
    Row(("input_blocks.8.1", "down_blocks.2.attentions.1")),
    Row(("input_blocks.9.0.op", "down_blocks.2.downsamplers.0.conv")),
    Row(("input_blocks.10.0", "down_blocks.3.resnets.0"), RESNET),
    Row(("input_blocks.11.0", "down_blocks.3.resnets.1"), RESNET),
    Row(("output_blocks.0.0", "up_blocks.0.resnets.0"), RESNET),
    Row(("output_blocks.1.0", "up_blocks.0.resnets.1"), RESNET),
    Row(("output_blocks.2.0", "up_blocks.0.resnets.2"), RESNET),
    Row(("output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv")),
    Row(("output_blocks.3.0", "up_blocks.1.resnets.0"), RESNET),
    Row(("output_blocks.3.1", "up_blocks.1.attentions.0")),
    Row(("output_blocks.4.0", "up_blocks.1.resnets.1"), RESNET),
    Row(("output_blocks.4.1", "up_blocks.1.attentions.1")),
    Row(("output_blocks.5.0", "up_blocks.1.resnets.2"), RESNET),
    Row(("output_blocks.5.1", "up_blocks.1.attentions.2")),
    Row(("output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv")),
    Row(("output_blocks.6.0", "up_blocks.2.resnets.0"), RESNET),
    Row(("output_blocks.6.1", "up_blocks.2.attentions.0")),
    Row(("output_blocks.7.0", "up_blocks.2.resnets.1"), RESNET),
    Row(("output_blocks.7.1", "up_blocks.2.attentions.1")),
    Row(("output_blocks.8.0", "up_blocks.2.resnets.2"), RESNET),
    Row(("output_blocks.8.1", "up_blocks.2.attentions.2")),
    Row(("output_blocks.8.2.conv", "up_blocks.2.upsamplers.0.conv")),
    Row(("output_blocks.9.0", "up_blocks.3.resnets.0"), RESNET),
    Row(("output_blocks.9.1", "up_blocks.3.attentions.0")),
    Row(("output_blocks.10.0", "up_blocks.3.resnets.1"), RESNET),
    Row(("output_blocks.10.1", "up_blocks.3.attentions.1")),
    Row(("output_blocks.11.0", "up_blocks.3.resnets.2"), RESNET),
    Row(("output_blocks.11.1", "up_blocks.3.attentions.2")),
)

# Three levels, attention on the lower two: SDXL and its pruned variants.
THREE_LEVELS = (
    *ENDS,
    Row(("input_blocks.1.0", "down_blocks.0.resnets.0"), RESNET),
    Row(("input_blocks.2.0", "down_blocks.0.resnets.1"), RESNET),
    Row(("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv")),
    Row(("input_blocks.4.0", "down_blocks.1.resnets.0"), RESNET),
    Row(("input_blocks.4.1", "down_blocks.1.attentions.0")),
    Row(("input_blocks.5.0", "down_blocks.1.resnets.1"), RESNET),
    Row(("input_blocks.5.1", "down_blocks.1.attentions.1")),
    Row(("input_blocks.6.0.op", "down_blocks.1.downsamplers.0.conv")),
    Row(("input_blocks.7.0", "down_blocks.2.resnets.0"), RESNET),
    Row(("input_blocks.7.1", "down_blocks.2.attentions.0")),
    Row(("input_blocks.8.0", "down_blocks.2.resnets.1"), RESNET),
    Row(("input_blocks.8.1", "down_blocks.2.attentions.1")),
    Row(("output_blocks.0.0", "up_blocks.0.resnets.0"), RESNET),
    Row(("output_blocks.0.1", "up_blocks.0.attentions.0")),
    Row(("output_blocks.1.0", "up_blocks.0.resnets.1"), RESNET),
    Row(("output_blocks.1.1", "up_blocks.0.attentions.1")),
    Row(("output_blocks.2.0", "up_blocks.0.resnets.2"), RESNET),
    Row(("output_blocks.2.1", "up_blocks.0.attentions.2")),
    Row(("output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv")),
    Row(("output_blocks.3.0", "up_blocks.1.resnets.0"), RESNET),
    Row(("output_blocks.3.1", "up_blocks.1.attentions.0")),
    Row(("output_blocks.4.0", "up_blocks.1.resnets.1"), RESNET),
    Row(("output_blocks.4.1", "up_blocks.1.attentions.1")),
    Row(("output_blocks.5.0", "up_blocks.1.resnets.2"), RESNET),
    Row(("output_blocks.5.1", "up_blocks.1.attentions.2")),
    Row(("output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv")),
    Row(("output_blocks.6.0", "up_blocks.2.resnets.0"), RESNET),
    Row(("output_blocks.7.0", "up_blocks.2.resnets.1"), RESNET),
    Row(("output_blocks.8.0", "up_blocks.2.resnets.2"), RESNET),
)

# cloneofsimo/lora numbers layers in the order in which PyTorch walked through the UNet of that time: `mid_block` came
# last, and until diffusers 0.13 the feed-forward came between the two attentions.
TRAVERSED = (
    "down_blocks.0.attentions.0.transformer_blocks.0",
    "down_blocks.0.attentions.1.transformer_blocks.0",
    "down_blocks.1.attentions.0.transformer_blocks.0",
    "down_blocks.1.attentions.1.transformer_blocks.0",
    "down_blocks.2.attentions.0.transformer_blocks.0",
    "down_blocks.2.attentions.1.transformer_blocks.0",
    "up_blocks.1.attentions.0.transformer_blocks.0",
    "up_blocks.1.attentions.1.transformer_blocks.0",
    "up_blocks.1.attentions.2.transformer_blocks.0",
    "up_blocks.2.attentions.0.transformer_blocks.0",
    "up_blocks.2.attentions.1.transformer_blocks.0",
    "up_blocks.2.attentions.2.transformer_blocks.0",
    "up_blocks.3.attentions.0.transformer_blocks.0",
    "up_blocks.3.attentions.1.transformer_blocks.0",
    "up_blocks.3.attentions.2.transformer_blocks.0",
    "mid_block.attentions.0.transformer_blocks.0",
)
ATTENTION_1 = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
ATTENTION_2 = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
ORDERS = (
    IndexOrder(TRAVERSED, (*ATTENTION_1, "ff.net.0.proj", *ATTENTION_2)),
    IndexOrder(TRAVERSED, (*ATTENTION_1, *ATTENTION_2, "ff.net.0.proj")),
    IndexOrder(TRAVERSED, (*ATTENTION_1, *ATTENTION_2)),
)
