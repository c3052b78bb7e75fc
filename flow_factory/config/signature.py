"""What pipelines, schedulers, adapters and rewards accept, read from their source: nothing heavy is imported."""

import ast
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow_factory.config.base import show
from flow_factory.config.block_inputs import block_inputs, of_blocks
from flow_factory.config.modules import SignatureError, body_of, lineage, source_of, spec_of
from flow_factory.utils.registry import nearest

FLOW_SCHEDULERS = (
    "diffusers.schedulers.scheduling_flow_match_euler_discrete:FlowMatchEulerDiscreteScheduler",
    "diffusers.schedulers.scheduling_unipc_multistep:UniPCMultistepScheduler",
)
MEDIA = {
    "mask": r"((?!.*(attention|embeds|padding)).*_)?mask(_image)?",
    "image": r"(.*_)?(images?|image_reference)",
    "video": r"(.*_)?videos?",
    "audio": r"(.*_)?(audios?|sound|speech)",
}
"""Kinds of media, and what arguments that take them are called."""
SUPPLIED = {
    r"(negative_)?prompt(_\d)?": "prompts are columns of the data set",
    r".*_(embeds|mask|embeds_\d)": "the adapter encodes the prompts",
    r"(.*_)?latents": "the trainer draws the initial noise, keyed by train.seed",
    r"generator": "the trainer draws the initial noise, keyed by train.seed",
    r"num_(images|videos)_per_prompt": "the number of samples is train.group_size",
    r"output_type|return_dict": "the trainer chooses what the pipeline returns",
    r"callback.*": "the trainer needs none, and YAML holds no functions",
    r"sigmas|timesteps": "the steps follow from num_inference_steps and the scheduler's settings",
    r"skip_guidance_layers|skip_layer_guidance_.*": "guidance that depends on the step cannot be replayed in training",
}


@dataclass(frozen=True)
class Parameter:
    """An argument in a signature."""

    name: str
    annotation: str
    kinds: frozenset[str] | None
    """Simple types that it takes ("int", "float", "bool", "str", "None"); None stands for any value."""
    default: Any = None
    """Where it is a literal."""

    def problem(self, value: Any) -> str | None:
        """Why a value does not fit, or None. An int fits a float."""
        kind = "None" if value is None else type(value).__name__
        if isinstance(value, float) and not math.isfinite(value):
            return f"wants a finite number, got {show(value)}"
        if self.kinds is None or kind in self.kinds or (kind == "int" and "float" in self.kinds):
            return None
        return f"wants {self.annotation}, got {show(value)}"


def call_arguments(adapter: str, pipeline: str | None = None) -> dict[str, Parameter]:
    """Arguments of the `__call__` of an adapter's pipeline, and those that the adapter declares in `extra_call_arguments`.

    Args:
        adapter: `module:Class`, with a class attribute `pipeline = "module:Class"`.
        pipeline: `module:Class` where the adapter leaves it open.

    Raises:
        SignatureError: the adapter or its pipeline cannot be read.
    """
    pipeline = pipeline or class_attribute(adapter, "pipeline")
    if not isinstance(pipeline, str):
        raise SignatureError(f'{adapter} does not say `pipeline = "module:Class"`, so arguments of the pipeline cannot be checked')
    extra = class_attribute(adapter, "extra_call_arguments") or ()
    return {p.name: p for p in parameters(pipeline, "__call__")} | {name: Parameter(name, "any", None) for name in extra}


def scheduler_arguments() -> dict[str, Parameter]:
    """Arguments that some flow scheduler of diffusers is constructed with; one that two schedulers share takes what either takes."""
    merged: dict[str, Parameter] = {}
    for p in (p for path in FLOW_SCHEDULERS for p in parameters(path, "__init__")):
        other = merged.get(p.name, p)
        kinds = None if p.kinds is None or other.kinds is None else p.kinds | other.kinds
        merged[p.name] = Parameter(p.name, " | ".join(dict.fromkeys([other.annotation, p.annotation])), kinds)
    return merged


def supplied_by_trainer(argument: Parameter) -> str | None:
    """Why a call argument may not stand in the YAML, or None."""
    if argument.kinds is None and any(re.fullmatch(pattern, argument.name) for pattern in MEDIA.values()):
        return "images, masks, videos and sounds are columns of the data set: data.columns names them"
    return next((reason for pattern, reason in SUPPLIED.items() if re.fullmatch(pattern, argument.name)), None)


def attention_backends() -> list[str]:
    """Names of diffusers' attention backends."""
    members = (node for cls in lineage("diffusers.models.attention_dispatch:AttentionBackendName") for node in cls.body)
    return [str(node.value.value) for node in members if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]


def require_class(path: str) -> None:
    """Checks that `module:Class` exists, without importing it; raises as `_require`."""
    _require(path, (ast.ClassDef,), "class")


def require_function(path: str) -> None:
    """Checks that `module:function` exists, without importing it; raises as `_require`."""
    _require(path, (ast.FunctionDef,), "function")


def require_reward(path: str) -> None:
    """Checks that `module:name` exists, without importing it; raises as `_require`."""
    _require(path, (ast.ClassDef, ast.FunctionDef), "class or function")


def _require(path: str, kinds: tuple[type[ast.stmt], ...], called: str) -> None:
    """Checks that a module has something of this name.

    Raises:
        SignatureError: there is no such module, it is no Python, or it has nothing of this name.
    """
    module, _, name = path.partition(":")
    spec = spec_of(module)
    if spec is None:
        raise SignatureError(f"there is no module {module!r} (looked in the current directory too)")
    if source_of(module) is None and spec.submodule_search_locations is None:
        return  # compiled: it is known when it is imported
    body = body_of(module)
    names = [n for node in body for n in _named(node)]
    if name not in names and "*" not in names:
        known = [name for node in body if isinstance(node, kinds) for name in _named(node)]
        file = Path(spec.origin).name if spec.origin else module
        raise SignatureError(f"{file} has no {called} {name!r}.{nearest(name, known)} It has {', '.join(known) or 'none'}")


def _named(node: ast.stmt) -> list[str]:
    """What a statement of a module makes known; `*` for all that another module has."""
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case ast.ImportFrom(names=aliases) | ast.Import(names=aliases):
            return [alias.asname or alias.name for alias in aliases]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.If() | ast.Try():
            return ["*"]  # what holds is known when it runs
    return []


def class_attribute(path: str, name: str) -> Any:
    """Value of a class attribute of `module:Class`, inherited ones included; None if there is none.

    Raises:
        SignatureError: it is not written as a literal.
    """
    for node in (node for cls in lineage(path) for node in cls.body):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=target)], value=value)
                | ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value)
            ):
                if target == name:
                    return _literal(value, f"{path}.{name}")
    return None


def parameters(path: str, method: str) -> Iterator[Parameter]:
    """Arguments of a method of `module:Class`, without self.

    Raises:
        SignatureError: there is no source of such a class and method.
    """
    if of_blocks(path) and method == "__call__":
        yield from (Parameter(*given) for given in block_inputs(path))
        return
    for node in (node for cls in lineage(path) for node in cls.body):
        if isinstance(node, ast.FunctionDef) and node.name == method:
            args = [*node.args.posonlyargs, *node.args.args][1:]
            given = zip(reversed(args), reversed(node.args.defaults), strict=False)
            defaults: dict[str, ast.expr | None] = {arg.arg: default for arg, default in given}
            defaults |= {arg.arg: default for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)}
            for arg in [*args, *node.args.kwonlyargs]:
                default = defaults.get(arg.arg)
                kinds = None if arg.annotation is None else _kinds(arg.annotation)
                if kinds is not None and default is not None and _is_none(default):
                    kinds |= {"None"}
                text = "any" if arg.annotation is None else ast.unparse(arg.annotation)
                yield Parameter(arg.arg, text, kinds, default.value if isinstance(default, ast.Constant) else None)
            return
    raise SignatureError(f"there is no source of {path}.{method}")


def _literal(node: ast.expr, name: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise SignatureError(f"{name} must be written as a literal, not `{ast.unparse(node)}`") from error


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _kinds(node: ast.expr) -> frozenset[str] | None:
    """Simple types of an annotation, or None where it has others."""
    match node:
        case ast.Constant(value=None):
            return frozenset({"None"})
        case ast.Name(id="int" | "float" | "bool" | "str" as kind):
            return frozenset({kind})
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            parts = [_kinds(left), _kinds(right)]
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            parts = [_kinds(inner), frozenset({"None"})]
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=inner)):
            parts = [_kinds(part) for part in inner]
        case _:
            return None
    known = [part for part in parts if part is not None]
    return frozenset().union(*known) if len(known) == len(parts) else None
