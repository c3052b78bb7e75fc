"""What a pipeline's own `check_inputs` says of call arguments, before anything is encoded or drawn."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flow_factory.utils.errors import UserError

UNKNOWN = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError)
"""What `check_inputs` raises where it needs more than is known before a row is there, such as a picture."""


def check_arguments(pipe: Any, call: Mapping[str, Any]) -> None:
    """Asks the pipeline of the arguments beside the sizes, in a call that it takes without them.

    Raises:
        UserError: it refuses one, alone and with the others; with the pipeline's message.
    """
    check = getattr(pipe, "check_inputs", None)
    if check is None:
        return
    parameters = inspect.signature(check).parameters
    needed = {name: None for name, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    known = {"prompt": "a prompt", "height": call["height"], "width": call["width"]}
    plain = needed | {name: value for name, value in known.items() if name in parameters}
    asked = {name: value for name, value in call.items() if name in parameters and name not in known}
    if refusal(check, plain) is not None or refusal(check, plain | asked) is None:
        return
    for name, value in asked.items():
        if (error := refusal(check, plain | {name: value})) is not None:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{name} {value!r}: {type(pipe).__name__} refuses it: {reason}") from error


def refusal(check: Callable[..., Any], arguments: Mapping[str, Any]) -> Exception | None:
    """The error of `check_inputs`; None: it takes the arguments."""
    try:
        check(**arguments)
    except UNKNOWN as error:
        return error
    return None
