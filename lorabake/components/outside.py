"""Tensors of checkpoints that are of no component, and are left out where a checkpoint gets another layout."""

from lorabake.keymap.table import Outside

OUTSIDE = (
    Outside(
        (
            "betas",
            "alphas_cumprod",
            "alphas_cumprod_prev",
            "sqrt_alphas_cumprod",
            "sqrt_one_minus_alphas_cumprod",
            "log_one_minus_alphas_cumprod",
            "sqrt_recip_alphas_cumprod",
            "sqrt_recipm1_alphas_cumprod",
            "posterior_variance",
            "posterior_log_variance_clipped",
            "posterior_mean_coef1",
            "posterior_mean_coef2",
            "logvar",
            "scale_factor",
            "denoiser.sigmas",
            "denoiser.log_sigmas",
        ),
        "the noise schedule, which programs work out anew",
    ),
    Outside(("v_pred", "ztsnr"), "markers of the prediction, which a folder says in its scheduler"),
    Outside(("model_ema.*",), "averages of the training, which programs do not draw with"),
    Outside(
        ("*logit_scale",),
        "the scale of CLIP's comparisons, which drawing does not take",
    ),
)
