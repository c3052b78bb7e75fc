"""Facts about a model family that need no checkpoint: for the config's checks, for estimates, and for its adapter."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from torch import nn

from flow_factory.config.block_inputs import of_blocks
from flow_factory.models.blocks import part_class
from flow_factory.models.parts import import_pipeline
from flow_factory.types import Row
from flow_factory.utils.errors import UserError

CONDITION_AREA = 1024 * 1024
"""Pixels to which the editing pipelines bring a picture themselves."""
TEXT_WIDTHS = ("joint_attention_dim", "text_dim", "cap_feat_dim", "context_in_dim", "text_embed_dim", "in_text_dim")
"""What the configs of transformers call the width of a prompt's embeddings."""


def text_values(shape: Mapping[str, Any], tokens: int) -> int:
    """Values of the embeddings of so many tokens, by a transformer's config; 0 where it does not say."""
    return tokens * next((shape[name] for name in TEXT_WIDTHS if shape.get(name)), 0)


class Family:
    """Class attributes and what follows from them."""

    pipeline: ClassVar[str]
    """`module:Class` in diffusers, as text: the config checks call arguments against its signature without importing it."""
    also_loads: ClassVar[tuple[str, ...]] = ()
    """Names of other pipelines whose checkpoints this one takes."""
    components: ClassVar[tuple[str, ...]] = ("transformer",)
    """Transformers that can be trained, in the pipeline's names; those that a checkpoint lacks are passed over."""
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    """Module name endings for `target_modules: default`."""
    dead_ends: ClassVar[tuple[str, ...]] = ()
    """Modules that no gradient ever reaches, such as `transformer_blocks.-1.attn.to_add_out` (-1 is the last block): never trained, or
    a distributed backward would wait for them."""
    find_unused: ClassVar[bool] = False
    """Whether gradients may miss parameters that nobody has listed as dead ends."""
    encoders: tuple[str, ...] = ()
    """Parts used by `encode` alone: dropped from memory once every row is encoded."""
    memoised: ClassVar[tuple[str, ...]] = ("vae.encode",)
    """What the pipeline computes from its condition alone inside `__call__`: computed once a micro-batch."""
    encodes_by: ClassVar[tuple[str, ...]] = ("max_sequence_length",)
    """Call arguments that change what `encode` returns: part of the cache's key."""
    extra_call_arguments: ClassVar[tuple[str, ...]] = ()
    """Arguments of `train:` and `eval:` that the family takes beyond the pipeline's own."""
    images: ClassVar[tuple[int, int]] = (0, 0)
    """How many condition images a row may have, at least and at most."""
    videos: ClassVar[tuple[int, int]] = (0, 0)
    further_inputs: ClassVar[bool] = False
    """Whether `conditions` hands over the files of other arguments (`data.columns`) too."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Those of the other arguments that every row has to have."""
    guidance: ClassVar[str] = "guidance_scale"
    """The pipeline's name for what the config calls `guidance_scale`."""
    cfg: str | None = "guidance_scale"
    """The argument that, above 1, asks for a second forward with the negative prompt; None: there is no such thing."""
    unguided: float = 1.0
    """The value of `cfg` that turns guidance off: 0 where the pipeline adds `cfg` times what the prompt changes."""
    negative: ClassVar[str] = ""
    """The negative prompt of rows that have none."""
    pads_prompts: ClassVar[bool] = True
    """Whether the transformer gets the embeddings of all prompts at the same length."""
    text_length: int = 512
    """Tokens that the encoder takes where `max_sequence_length` is not given; the default of the pipeline's `__call__`, if it has one."""
    in_velocity: ClassVar[Mapping[str, Any]] = {}
    """Call arguments that velocity calls need otherwise than rollouts."""
    default_frames: ClassVar[int] = 1
    """Of a sample, where the call does not say `num_frames`, for estimates."""
    token: ClassVar[tuple[int, int]] = (16, 4)
    """Pixels each way, and frames after the first, that make a token, for estimates."""
    tile: ClassVar[int] = 1024
    """Pixels each way of a tile, where the VAE decodes in tiles, for estimates; smaller pictures are decoded whole."""
    fps: float = 16
    """Frames per second of videos."""
    evaluates_by: ClassVar[str | None] = None
    """The pipeline's own scheduler, where it is not the first-order one of rollouts."""
    precise_vae: ClassVar[bool] = False
    """Whether diffusers' own examples have the VAE in float32 beside a transformer in 16 bits."""
    draws: ClassVar[Literal["image", "video"]] = "image"
    """What the pipeline makes."""
    sounds: ClassVar[bool] = False
    """Whether its videos have sound."""
    encodes_media: ClassVar[str | None] = "its adapter does not define it"
    """Why `to_state` cannot encode media; None: it can."""
    splits: ClassVar[bool] = False
    """Whether `model.context_parallel` can split its sequences: diffusers has a plan for it, and the tests prove its gradient."""
    times_per_sample: ClassVar[bool] = False
    """Whether `velocity` takes a time for each sample, t and s (n,), without classifier-free guidance."""

    published: ClassVar[Mapping[str, float]] = {}
    """Parameters by part of the family's best-known checkpoint."""
    published_config: ClassVar[Mapping[str, Any]] = {}
    """Its transformer's config, where it differs from the class's defaults."""
    variants: ClassVar[Mapping[str, tuple[Mapping[str, float], Mapping[str, Any]]]] = {}
    """Part of a hub name -> what `published` and `published_config` are for checkpoints of that name."""

    @classmethod
    def transformer_class(cls) -> Any:
        """The class of the first component, from the pipeline's own signature, or from its blocks."""
        if of_blocks(cls.pipeline):
            return part_class(cls.pipeline, cls.components[0])
        hint = get_type_hints(import_pipeline(cls.pipeline).__init__)[cls.components[0]]
        return next((kind for kind in get_args(hint) if kind is not type(None)), hint)  # Wan's may be None

    @classmethod
    def tokens_of(cls, height: int, width: int, call: Mapping[str, Any]) -> int:
        """Tokens of one sample in the transformer, text and one condition picture included, for estimates."""
        (side, step), frames = cls.token, (call.get("num_frames") or cls.default_frames) - 1
        drawn = (frames // step + 1) * (height // side) * (width // side)
        return drawn + call.get("max_sequence_length", cls.text_length) + cls.condition_tokens(call)

    @classmethod
    def condition_tokens(cls, call: Mapping[str, Any]) -> int:
        """Tokens of a condition picture, where the transformer is shown it as tokens of its own, for estimates."""
        size = call.get("condition_image_size")
        if "condition_image_size" not in cls.extra_call_arguments or (size is None and not cls.images[0]):
            return 0
        area = CONDITION_AREA if size is None else size * size if isinstance(size, int) else size[0] * size[1]
        return area // 256

    @classmethod
    def embedded(cls, shape: Mapping[str, Any], tokens: int) -> int:
        """Values of a prompt's embeddings, for estimates; 0 where the family does not say.

        Args:
            shape: the config of the first component, which takes them.
            tokens: as many as the encoder takes at most.
        """
        return text_values(shape, tokens)

    @classmethod
    def decoding_of(cls, height: int, width: int, call: Mapping[str, Any]) -> float:
        """Values of mixed_precision that the VAE has at a time while it decodes one sample, for estimates: traced with fake tensors."""
        return 768.0 * height * width

    @classmethod
    def passes(cls, call: Mapping[str, Any]) -> int:
        """Transformer forwards of one velocity, in units of a batch, for estimates."""
        scale = call.get(cls.cfg, call["guidance_scale"] if cls.guidance == cls.cfg else 1.0) if cls.cfg is not None else 1.0
        return 2 if (scale or 0) > cls.unguided else 1

    @classmethod
    def targets_in(cls, module: nn.Module) -> tuple[str, ...]:
        """`lora_targets` for a transformer."""
        return cls.lora_targets

    @classmethod
    def check_row(cls, row: Row) -> None:
        """Raises:
        UserError: the row has fewer or more condition images or videos than the family takes, or lacks another of its inputs.
        """
        for kind, files, (least, most) in (("image", row.images, cls.images), ("video", row.videos, cls.videos)):
            if not least <= len(files) <= most:
                wants = f"{least}" if least == most else f"{least} to {most}"
                raise UserError(f"{row.source}: {len(files)} condition {kind}s; {cls.__name__} takes {wants} (columns {kind}, {kind}s)")
        if missing := [name for name in cls.needs if name not in {**row.image_inputs, **row.video_inputs}]:
            name = missing[0]
            raise UserError(f"{row.source}: no {name}; {cls.__name__} takes one a row; data.columns: {{{name}: the column that has it}}")

    @classmethod
    def published_as(cls, name: str) -> tuple[Mapping[str, float], Mapping[str, Any]]:
        """`published` and `published_config` of a hub name."""
        for part, (parameters, config) in cls.variants.items():
            if part in name:
                return {**cls.published, **parameters}, {**cls.published_config, **config}
        return cls.published, cls.published_config
