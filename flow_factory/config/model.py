"""`model:` the pipeline, the weights to train, and how they compute."""

import re
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, field_validator

from flow_factory.config.base import DERIVED, Dtype, Folder, Names, Section, Shown, derived, show
from flow_factory.config.signature import attention_backends, require_class
from flow_factory.models import MODELS
from flow_factory.utils.registry import nearest

Number = TypeVar("Number", int, float)


def _patterns(patterns: dict[str, Number]) -> dict[str, Number]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{show(pattern)} is not an ending of a layer's name, such as attn.to_q, and no regular expression: {error}"
            ) from error
    return patterns


Shares = Shown("mapping, ending: number", "{}")
Ranks = Annotated[dict[str, Annotated[int, Field(ge=1, le=16384)]], AfterValidator(_patterns), Shares]
Alphas = Annotated[dict[str, Annotated[float, Field(gt=0, le=1e6)]], AfterValidator(_patterns), Shares]
AUTO = "auto"
"""Value of `resume_path`: the last training state of this run, or a fresh start if there is none."""


class ModelConfig(Section):
    """The pipeline, the weights to train, and how they compute."""

    model_name_or_path: Folder = Field(description="Hugging Face name or folder of a diffusers pipeline")
    model_type: str = Field(description="model family: a known name, or package.module.Class of your own adapter")
    pipeline_class: str | None = Field(
        None, description="only for model_type diffusers: the pipeline class, if the checkpoint does not name it"
    )
    finetune_type: Literal["full", "lora"] = Field(
        "full", description="full = train the weights themselves; lora = train LoRA layers and freeze the weights"
    )
    master_weight_dtype: Annotated[
        Dtype,
        derived(lambda above: "fp32" if above.get("finetune_type") == "lora" else "bf16"),
        Shown(default="bf16 for full in 16 bits, else fp32"),
    ] = Field(DERIVED, description="dtype in which the trained weights are stored and updated; 16 bits lose small updates")
    target_components: Names = Field(("transformer",), description="transformers to train, by their names in the pipeline")
    target_modules: Names = Field(
        ("all",),
        description="linear layers to train: all, default (the family's choice), or name endings; component.ending limits one to a "
        "component",
    )
    exclude_modules: Names = Field((), description="only for lora: linear layers that target_modules does not reach, by name endings")
    init_lora_weights: Literal["gaussian", "kaiming"] = Field(
        "gaussian", description="first values of lora_A, as peft has them (true there is kaiming); lora_B starts at 0"
    )
    lora_rank: int = Field(8, ge=1, le=16384, description="rank of the LoRA matrices")
    lora_alpha: Annotated[
        int, Field(ge=1, le=10**6), derived(lambda above: 2 * above.get("lora_rank", 1)), Shown(default="2 x lora_rank")
    ] = Field(DERIVED, description="LoRA scale: the update is multiplied by lora_alpha / lora_rank")
    use_rslora: bool = Field(False, description="only for lora: the scale is lora_alpha / sqrt(lora_rank)")
    use_dora: bool = Field(
        False, description="only for lora: DoRA, which trains the norm of each row of a layer's weights too; slower, and more memory"
    )
    rank_pattern: Ranks = Field(
        default_factory=dict, description="only for lora: ranks of layers that have another than lora_rank, by name endings"
    )
    alpha_pattern: Alphas = Field(default_factory=dict, description="only for lora: the same of lora_alpha")
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="only for lora and sft: share of a layer's inputs that its LoRA does not see, drawn anew at each point"
    )
    resume_path: Folder | None = Field(
        None,
        description="checkpoint, run folder or LoRA file to start from; auto = this run's last training state, or a fresh start if "
        "there is none",
    )
    resume_type: Literal["lora", "full", "state"] | None = Field(
        None, description="what to load from resume_path; null = the training state if there is one, else the weights"
    )
    attn_backend: str | None = Field(
        None,
        description="attention backend, by diffusers' names; its gradient is verified at the start; null = torch's choice without "
        "cuDNN attention",
    )
    context_parallel: int = Field(
        1, ge=1, description="processes that compute one sample together, each a part of the sequence; for videos and large images"
    )
    vae_slicing: Literal["auto"] | bool = Field(
        "auto",
        description="decode images one by one: less memory, more time; auto = only if the estimate says that a whole batch does not fit",
    )
    vae_tiling: Literal["auto"] | bool = Field(
        "auto",
        description="decode in overlapping tiles: less memory for large images and videos, which change slightly; auto = only if "
        "one image does not fit otherwise",
    )
    quantization: Literal["bnb_8bit", "bnb_4bit", "torchao_int8", "torchao_int8_dynamic", "torchao_float8_dynamic"] | None = Field(
        None,
        description="only for lora: keep the frozen transformer in 8 or 4 bits; bnb = bitsandbytes (4 bits: NF4); dynamic = the "
        "forward matrix products of its blocks also run in 8 bits; null = mixed_precision",
    )
    layerwise_casting: Literal["fp8_e4m3", "fp8_e5m2"] | None = Field(
        None, description="only for lora: store the frozen transformer in 8 bits, and cast each layer to mixed_precision while it computes"
    )
    offload_idle: bool = Field(False, description="move the VAE and other parts that only a rollout needs to main memory during training")
    offload_blocks: bool = Field(
        False, description="keep the transformer in main memory and move it to the device block by block (FSDP2's CPU offload)"
    )
    reshard_after_forward: Literal["auto"] | bool = Field(
        "auto",
        description="FSDP2: in rollouts and evaluations, free each block's gathered weights after its forward; false = keep them "
        "until the end, auto = keep them if the estimate says that they fit",
    )
    compile: bool = Field(
        False, description="compile the transformers block by block, once per shape; rollouts then run with gradients and need more memory"
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
