"""Where diffusion transformers lie in checkpoints, and the prefixes that LoRA files put before their names."""

# A single file holds the network at the top or below one of these prefixes; a diffusers pipeline, in a folder.
SINGLE_FILE = ("model.diffusion_model.", "diffusion_model.", "net.", "")
FOLDER = ("transformer/", "transformer.", "")
ANY = ("model.diffusion_model.", "diffusion_model.", "transformer/", "transformer.", "net.", "")

# Older scripts of PEFT and diffusers still call the transformer `unet`.
DOTTED = ("transformer.", "diffusion_model.", "model.diffusion_model.", "unet.")
FLAT = ("lora_unet_", "lora_unet__", "lora_transformer_")

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
QKV_1 = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
KV_2 = ("attn2.to_k", "attn2.to_v")
