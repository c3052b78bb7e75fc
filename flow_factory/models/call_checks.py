"""What a pipeline's own `check_inputs` says of call arguments, before anything is encoded or drawn."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from diffusers.utils import logging
from PIL import Image

from flow_factory.utils.errors import UserError

UNKNOWN = (TypeError, AttributeError, LookupError, RuntimeError)
"""What `check_inputs` raises where it needs more than is known before a row is there: it says nothing of the arguments."""


def check_arguments(pipe: Any, call: Mapping[str, Any]) -> None:
    """Asks the pipeline of the arguments beside the sizes, in a call that it takes without them; where there is none, nothing is asked.

    Raises:
        UserError: it refuses one, alone and with the others; with the pipeline's message.
    """
    check = getattr(pipe, "check_inputs", None)
    if check is None:
        return
    parameters = inspect.signature(check).parameters
    known = {"prompt": "a prompt", "height": call["height"], "width": call["width"]}
    asked = {name: value for name, value in call.items() if name in parameters and name not in known}
    with quiet():
        plain = next((start for start in starts(pipe, parameters, known) if refusal(check, start) is None), None)
        if plain is None or refusal(check, plain | asked) is None:
            return
        for name, value in asked.items():
            if (error := refusal(check, plain | {name: value})) is not None:
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"{name} {value!r}: {type(pipe).__name__} refuses it: {reason}") from error


def starts(pipe: Any, parameters: Mapping[str, inspect.Parameter], known: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Arguments of `check_inputs` as a call without others passes them: with the call's defaults, and then with a picture."""
    defaults = {name: p.default for name, p in inspect.signature(pipe.__call__).parameters.items() if p.default is not p.empty}
    needed = {name: None for name, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    start = {name: value for name, value in {**needed, **defaults, **known}.items() if name in parameters}
    yield start
    if "image" in parameters:
        yield start | {"image": Image.new("RGB", (known["width"], known["height"]))}


def refusal(check: Callable[..., Any], arguments: Mapping[str, Any]) -> ValueError | None:
    """The error by which `check_inputs` refuses the arguments; None: it takes them, or cannot tell."""
    try:
        check(**arguments)
    except ValueError as error:
        return error
    except UNKNOWN:
        return None
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of diffusers: the call itself will give them, once."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
