"""`model:` which pipeline, which of its weights are trained, and how it computes."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from flow_factory.config.base import DERIVED, Dtype, Folder, Names, Section, Shown, derived, show
from flow_factory.config.signature import attention_backends, require_class
from flow_factory.models import MODELS
from flow_factory.utils.registry import nearest

AUTO = "auto"
"""As `resume_path`: the last checkpoint of this very run, or a fresh start where there is none yet."""


class ModelConfig(Section):
    """Which pipeline, which of its weights are trained, and how it computes."""

    model_name_or_path: Folder = Field(description="hub id or folder of a diffusers pipeline")
    model_type: str = Field(description="model family: a known name, or package.module.Class of your own adapter")
    pipeline_class: str | None = Field(None, description="for model_type diffusers: the pipeline, where the checkpoint does not say it")
    finetune_type: Literal["full", "lora"] = Field("full", description="train the weights themselves, or LoRA layers beside them")
    master_weight_dtype: Annotated[
        Dtype,
        derived(lambda above: "fp32" if above.get("finetune_type") == "lora" else "bf16"),
        Shown(default="bf16 for full in 16 bits, else fp32"),
    ] = Field(DERIVED, description="dtype in which trained weights are stored and updated; 16 bits lose small updates")
    target_components: Names = Field(("transformer",), description="transformers to train, in the pipeline's names")
    target_modules: Names = Field(
        ("all",), description="linear layers to train: all, default (the family's), or name endings, also component.ending"
    )
    lora_rank: int = Field(8, ge=1, le=16384, description="rank of the LoRA matrices")
    lora_alpha: Annotated[
        int, Field(ge=1, le=10**6), derived(lambda above: 2 * above.get("lora_rank", 1)), Shown(default="2 x lora_rank")
    ] = Field(DERIVED, description="LoRA scale: the update is multiplied by lora_alpha / lora_rank")
    resume_path: Folder | None = Field(
        None, description="checkpoint, run folder or LoRA file to start from; auto = this run's own last training state, if any"
    )
    resume_type: Literal["lora", "full", "state"] | None = Field(
        None, description="what to load of resume_path; null = its training state, or else its weights"
    )
    attn_backend: str | None = Field(
        None, description="attention backend in diffusers' names, proved at the start; null = torch's choice, but cuDNN's on no GPU"
    )
    context_parallel: int = Field(
        1, ge=1, description="processes that compute a sample together, each a part of its sequence: for video and large pictures"
    )
    vae_slicing: Literal["auto"] | bool = Field(
        "auto", description="decode pictures one by one: less memory, more time; auto = where the estimate has no room for all at once"
    )
    vae_tiling: Literal["auto"] | bool = Field(
        "auto",
        description="decode in overlapping tiles: less memory for large pictures and videos, which change slightly; auto = where a picture "
        "has no room otherwise",
    )
    quantization: Literal["bnb_8bit", "bnb_4bit", "torchao_int8", "torchao_int8_dynamic", "torchao_float8_dynamic"] | None = Field(
        None,
        description="for lora: frozen transformer in 8 or 4 bits; bnb = bitsandbytes (4 bits: NF4); dynamic = its blocks also multiply "
        "in 8 bits, forward; null = in mixed_precision",
    )
    layerwise_casting: Literal["fp8_e4m3", "fp8_e5m2"] | None = Field(
        None, description="for lora: frozen transformer stored in 8 bits, each layer brought to mixed_precision while it computes"
    )
    offload_idle: bool = Field(False, description="the VAE and all else that only a rollout needs wait in main memory while training")
    offload_blocks: bool = Field(False, description="the transformer waits in main memory, block by block on the device: FSDP2's offload")
    reshard_after_forward: Literal["auto"] | bool = Field(
        "auto",
        description="FSDP2: in rollouts and evaluations, blocks give gathered weights back after each forward; false = keep them to the "
        "end, auto = keep them where the estimate has room",
    )
    compile: bool = Field(
        False, description="compile the transformers block by block, for each shape of a call; rollouts then keep activations"
    )
    compile_backend: Literal["inductor", "aot_eager", "eager", "cudagraphs"] = Field("inductor", description="torch.compile backend")

    @field_validator("model_type")
    @classmethod
    def _known(cls, name: str) -> str:
        require_class(MODELS.path(name))
        return MODELS.canonical(name)

    @field_validator("attn_backend")
    @classmethod
    def _backend(cls, name: str | None) -> str | None:
        if name is not None and name not in (known := attention_backends()):
            raise ValueError(f"diffusers has no attention backend {show(name)}.{nearest(name, known)} Known: {', '.join(known)}")
        return name
