"""Facts about diffusers' pipelines, by the names that they share, for the generic adapter."""

from collections.abc import Callable, Collection
from importlib.metadata import version
from typing import Any

from diffusers import ModelMixin
from torch import Tensor

from flow_factory.core.scheduler_seam import FORCING

PROJECTIONS = (
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_q_t", "to_k_t", "to_v_t", "to_out_t",
)  # fmt: skip
"""The attention projections, as diffusers names them."""
TEXTS = ("encode_prompt", "encode_prompt_multiple_images", "rewire_prompt", "generate_prior_tokens")
"""Methods of pipelines that turn texts into what the transformer takes; only they need the text encoders.

The last, of GLM-Image, draws tokens: a row's samples have the same ones."""
ONE_AT_A_TIME = ("AutoencoderKLHunyuanVideo15",)
"""VAEs whose attention takes one sample."""
ASKED = ("prompt", "num_inference_steps", "generator")
"""Arguments without which a pipeline cannot be trained: some have one schedule, or prompts in parts."""
SIZES = ("height", "width", "num_frames", "resolution", "image")
"""Arguments of which a pipeline of pictures or videos has one at least."""
UNTRAINABLE = {
    "HunyuanImageRefinerPipeline": "it adds noise of its own to its picture, which a replay cannot draw again",
    "LTX2HDRPipeline": "it draws arrays of linear light, which no reward can score",
    "LTXI2VLongMultiPromptPipeline": "it draws a video in windows, each by a schedule of its own",
    "QwenImageLayeredPipeline": "its pictures have an alpha channel, which pictures of a data set lose here",
    "SkyReelsV2DiffusionForcingPipeline": f"it {FORCING}",
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": f"it {FORCING}",
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": f"it {FORCING}",
}
"""Pipelines whose construction stands in the way -> how."""
BROKEN = {
    "0.42": {
        "ChromaInpaintPipeline": "diffusers 0.42 reads guidance_embeds in it, which the config of its transformer lacks",
        "EasyAnimateControlPipeline": "diffusers 0.42 calls its encode_prompt with an argument that it does not take",
    }
}
"""Versions of diffusers -> pipelines that they cannot run, and why."""
CHANCE = ("image_cond_noise_scale",)
"""Arguments with which a pipeline (LTX's with conditions) adds noise of its own at each step."""

FACTORS = {
    "pixels": ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor"),
    "frames": ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor"),
}
"""What pipelines call the pixels each way, and the frames, of a latent."""


def factor(pipe: Any, of: str, default: int) -> int:
    """How many pixels each way, or frames, of a latent the pipeline says.

    Args:
        of: see `FACTORS`.
    """
    return next((int(getattr(pipe, name)) for name in FACTORS[of] if hasattr(pipe, name)), default)


def lacking(pipeline: Any, parts: Collection[str], parameters: Collection[str]) -> str | None:
    """Why no run can train a pipeline of this class, whatever its weights are; None: nothing of its class tells.

    Args:
        pipeline: the pipeline, or its class.
        parts: its components.
        parameters: of its call.
    """
    name = (pipeline if isinstance(pipeline, type) else type(pipeline)).__name__
    known = UNTRAINABLE | BROKEN.get(".".join(version("diffusers").split(".")[:2]), {})
    if name in known:
        return known[name]
    lacks = [k for k in ("transformer",) if k not in parts] + [f"argument {k}" for k in ASKED if k not in parameters]
    lacks += [] if any(hasattr(pipeline, k) for k in TEXTS) else [TEXTS[0]]
    if lacks:
        return f"it has no {', '.join(lacks)}"
    return None if any(k in parameters for k in SIZES) else "it draws a sound, no picture or video"


def unlike_flow(scheduler: Any) -> str | None:
    """That a scheduler is not one of flow matching; None: it is."""
    name, config = type(scheduler).__name__, scheduler.config
    flow = "FlowMatch" in name or config.get("use_flow_sigmas") or config.get("prediction_type") == "flow"
    return None if flow else f"{name} is not a flow-matching scheduler"


def complete(pipe: Any) -> None:
    """Adds to a pipeline's parts what some of them miss for the calls of a run."""
    vae = getattr(pipe, "vae", None)
    if vae is not None:
        vae.encode = in_own_dtype(vae)
        if type(vae).__name__ in ONE_AT_A_TIME:
            vae.enable_slicing()
    for part in pipe.components.values():
        if isinstance(part, ModelMixin) and not hasattr(part, "gradient_checkpointing"):
            part.gradient_checkpointing = False  # type: ignore[attr-defined]  # Z-Image's ControlNet asks for it and never sets it


def in_own_dtype(vae: Any) -> Callable[..., Any]:
    """The VAE's `encode`, of pixels in any dtype: some pipelines (Lucy Edit) hand it float32 whatever it is."""
    encode = vae.encode

    def encode_any(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return encode(x.to(vae.dtype), *args, **kwargs)

    return encode_any


def unguided_scale(pipe: Any, known: float) -> float:
    """The `guidance_scale` that turns classifier-free guidance off: 0 for Z-Image's kin and Krea, whose guidance is on above it.

    Args:
        known: what it is where the pipeline does not say; 1 for most.
    """
    if not hasattr(type(pipe), "do_classifier_free_guidance"):
        return known
    before = vars(pipe).get("_guidance_scale")
    pipe._guidance_scale = 0.5
    try:
        return 0.0 if pipe.do_classifier_free_guidance is True else known
    except (AttributeError, TypeError):  # it depends on more than that
        return known
    finally:
        vars(pipe).pop("_guidance_scale") if before is None else setattr(pipe, "_guidance_scale", before)
