"""Counts the tokens of a prompt, with a checkpoint's configs and tokenizers alone."""

from collections.abc import Callable, Mapping
from typing import Any

from flow_factory.models import MODELS
from flow_factory.models.loading import one_sentence, sketch_adapter
from flow_factory.models.skeleton import text_parts
from flow_factory.types import Row
from flow_factory.utils.errors import UserError
from flow_factory.utils.hub import require_source
from flow_factory.utils.model_index import model_index


def token_counter(name: str, model_type: str | None, call: Mapping[str, Any]) -> Callable[[Row], tuple[int, int]]:
    """A row -> (tokens of its prompt, tokens that the encoder takes).

    Args:
        name: folder or hub name of the checkpoint.
        model_type: None: the first family that its pipeline is one of.
        call: arguments of the pipeline's `__call__`.

    Raises:
        UserError: no checkpoint of a family is there, or how it counts is not known.
    """
    require_source(name, "--model", "model_index.json")
    kind = model_type or family_of(name)
    adapter = sketch_adapter(name, kind)
    with one_sentence(name, type(adapter)):
        for part, value in text_parts(name).items():
            setattr(adapter.pipe, part, value)
    if adapter.tokens(Row(0, "a"), call)[0] == 0:
        raise UserError(f"--model: the token count of {type(adapter.pipe).__name__} is not known; leave --model out")
    return lambda row: adapter.tokens(row, call)


def family_of(name: str) -> str:
    """Raises:
    UserError: the checkpoint is of none.
    """
    made_for = model_index(name).get("_class_name")
    found = [kind for kind in MODELS if made_for in (MODELS[kind].pipeline.partition(":")[2], *MODELS[kind].also_loads)]
    if not found:
        raise UserError(f"--model: {name} is a {made_for}, which is none of the families that count tokens")
    return found[0]
