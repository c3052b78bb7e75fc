"""A modular pipeline of diffusers, which runs blocks, as one that is called: with a signature, and methods for texts that can be memoised.

The blocks run as they are. Their `encode_prompt` is what the blocks that read texts add to the state, in turn. The seam is the same: a
block of the loop calls `scheduler.step`, and the components are attributes, which the scheduler's stand-in and the proxies replace.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import LoopSequentialPipelineBlocks, PipelineQuantizationConfig
from diffusers.modular_pipelines import PipelineState
from torch import nn

from flow_factory.config.block_inputs import default_blocks, of_blocks
from flow_factory.models.guiders import guiding
from flow_factory.models.parts import namesake
from flow_factory.utils.errors import UserError
from flow_factory.utils.model_index import MODULAR, class_of, modular_index

MEDIA = ("images", "videos")
"""What the last blocks call what they have drawn."""
SCALE = "guidance_scale"
UPSAMPLER = "prompt_upsampler"
READERS = ("text_encoder", UPSAMPLER)
"""What the names of parts that read texts begin with."""
logging.getLogger("diffusers.modular_pipelines.modular_pipeline").setLevel(logging.CRITICAL)  # it logs what it raises, block by block


class Drawn(BaseException):
    """Stops the blocks after the loop, where nobody looks at what they would decode. No `Exception`: blocks log those."""


def blocks_pipeline(cls: Any, checkpoint: str, parts: Mapping[str, Any]) -> Any:
    """The pipeline of a checkpoint with these parts.

    Args:
        cls: its class in diffusers.
        checkpoint: a folder; only its index is read, and no code.
        parts: by name; those that its blocks do not ask for are ignored.

    Raises:
        UserError: it draws neither images nor videos.
    """
    pipe = cls(pretrained_model_name_or_path=checkpoint)
    if not any(p.name in MEDIA for p in pipe.blocks.intermediate_outputs):
        raise UserError(f"{cls.__name__} draws no images or videos: model_type: diffusers cannot train it")
    for name, part in parts.items():
        if name in pipe.components:
            setattr(pipe, name, part)
    pipe._blocks = pipe.blocks  # a copy: some blocks belong to their class
    if not (Path(checkpoint) / UPSAMPLER).is_dir():
        pipe._blocks.sub_blocks.pop(UPSAMPLER, None)  # diffusers' way to have prompts encoded as they are given
    inputs = {p.name: p for p in pipe._blocks.inputs if p.name is not None}
    for block in every(pipe._blocks):
        _opened(block)
    scaled = SCALE not in inputs and hasattr(getattr(pipe, "guider", None), SCALE)
    members = {"__call__": _call(inputs, scaled), "encode_prompt": lambda self, encode: encode(), "latents_only": False}
    members |= {"scales_guider": scaled, "register_modules": _register, "set_progress_bar_config": _no_bars}
    pipe.__class__ = namesake(cls, members)
    return pipe


def load_blocks(
    cls: Any,
    folder: str,
    index: Mapping[str, Any],
    torch_dtype: torch.dtype | Mapping[str, torch.dtype],
    quantization_config: PipelineQuantizationConfig | None = None,
    use_safetensors: bool = True,
    **parts: Any,
) -> Any:
    """The pipeline of a folder, as `from_pretrained` loads one; its index says from where, but only what is in the folder is read.

    Args:
        index: see `model_index`.
        torch_dtype: or one by part, with `default`.
        parts: that are there already, or are None and left out.
    """
    for name, entry in index.items():
        if name in parts or not isinstance(entry, list):
            continue
        kind, options = class_of(*entry), dict[str, Any]()
        if issubclass(kind, nn.Module):
            dtype = torch_dtype.get(name, torch_dtype["default"]) if isinstance(torch_dtype, Mapping) else torch_dtype
            options = {"torch_dtype": dtype, "use_safetensors": use_safetensors}
            if quantization_config is not None and name in (mapping := quantization_config.quant_mapping or {}):
                options["quantization_config"] = mapping[name]
        parts[name] = kind.from_pretrained(Path(folder) / name, **options)
    return blocks_pipeline(cls, folder, parts)


def part_class(path: str, name: str) -> Any:
    """The class of a part of the modular pipeline `module:Class`."""
    return next(spec.type_hint for spec in default_blocks(path).expected_components if spec.name == name)


def require_folder(path: str, checkpoint: str) -> None:
    """Raises:
    UserError: the pipeline `module:Class` is modular, and its checkpoint no folder with the index of one.
    """
    if of_blocks(path) and modular_index(Path(checkpoint)) is None:
        name = path.rpartition(":")[2]
        advice = f"hf download {checkpoint} --local-dir FOLDER makes one of a hub's checkpoint"
        raise UserError(f"model.model_name_or_path: {name} is modular, and reads a folder with {MODULAR}; {advice}")


def every(blocks: Any) -> Iterator[Any]:
    """A block and the blocks in it."""
    yield blocks
    for block in blocks.sub_blocks.values():
        yield from every(block)


def _opened(block: Any) -> None:
    """The block without its `@torch.no_grad`, as the seam calls a pipeline, and with what is to be done around it."""
    call = inspect.unwrap(type(block).__call__)
    if isinstance(block, LoopSequentialPipelineBlocks):
        call = _drawing(call)
    elif not block.sub_blocks and any(spec.name.startswith(READERS) for spec in block.expected_components):
        call = _texts(call, {p.name: p.kwargs_type for p in block.intermediate_outputs})
    block.__class__ = namesake(type(block), {"__call__": call})


def _drawing(call: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: Any, components: Any, state: Any) -> Any:
        out = call(self, components, state)
        if components.latents_only:
            raise Drawn
        return out

    return run


def _texts(call: Callable[..., Any], outputs: Mapping[str, Any]) -> Callable[..., Any]:
    """What it adds to the state is the pipeline's `encode_prompt`, which a memo may stand in for."""

    def run(self: Any, components: Any, state: PipelineState) -> Any:
        def encode() -> dict[str, Any]:
            call(self, components, state)
            return {name: state.get(name) for name in outputs}

        for name, value in components.encode_prompt(encode).items():
            state.set(name, value, outputs[name])
        return components, state

    return run


def _call(inputs: Mapping[str, Any], scaled: bool) -> Callable[..., Any]:
    """`__call__` with the blocks' inputs as its arguments, and the guider's scale where that is one."""

    def call(self: Any, return_dict: bool = False, **given: Any) -> tuple[Any]:
        self.latents_only = given.get("output_type") == "latent"
        state = PipelineState()
        for name, known in inputs.items():
            state.set(name, given.get(name, known.default), known.kwargs_type)
        with guiding(self, given.get(SCALE) if scaled else None):
            try:
                _, state = self._blocks(self, state)
            except Drawn:
                return (state.get("latents"),)
        return (next(state.get(name) for name in MEDIA if name in state.values),)

    kind = inspect.Parameter.KEYWORD_ONLY
    names = {name: known.default for name, known in inputs.items()} | ({SCALE: None} if scaled else {})
    named = [inspect.Parameter(name, kind, default=default) for name, default in names.items()]
    call.__signature__ = inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *named])  # type: ignore[attr-defined]
    return call


def _register(self: Any, **parts: Any) -> None:
    """`DiffusionPipeline`'s."""
    for name, part in parts.items():
        setattr(self, name, part)


def _no_bars(self: Any, **options: Any) -> None:
    for block in every(self._blocks):
        if hasattr(block, "set_progress_bar_config"):
            block.set_progress_bar_config(**options)
