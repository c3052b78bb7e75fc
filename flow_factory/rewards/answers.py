"""The conversion of a reward's result to scores. It must be one number for each sample."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flow_factory.rewards.base import RewardModelOutput
from flow_factory.utils.counting import counted
from flow_factory.utils.user_code import short

RIGHT = "it returns RewardModelOutput(rewards=...) with a list of numbers or None, a numpy array or a tensor, one score a sample"


class AnswerError(ValueError):
    """The result of a reward is not a list of scores. The message describes it."""


def scores_of(output: Any, n: int) -> tuple[Tensor, str]:
    """((n,) float32 on the CPU, NaN where a score is missing or not finite; the reward's own error message, or "").

    Shapes (n,) and (n, 1) are accepted, and a single number for one sample.

    Raises:
        AnswerError: the result is anything else.
    """
    returned = output.rewards if isinstance(output, RewardModelOutput) else output
    scores = _numbers(returned)
    if tuple(scores.shape) not in ((n,), (n, 1)) and not (n == 1 and scores.ndim == 0):
        many = counted(n, "sample")
        raise AnswerError(f"returned scores of shape {tuple(scores.shape)} for {many}")
    scores = scores.reshape(n)
    return scores.where(scores.isfinite(), torch.nan), _error(output)


def _numbers(returned: Any) -> Tensor:
    """float32 of any shape."""
    if isinstance(returned, Tensor):
        return _tensor(returned)
    if isinstance(returned, np.ndarray | np.generic):
        return _array(returned)
    if isinstance(returned, list | tuple):
        return torch.tensor([_number(r, k) for k, r in enumerate(returned)], dtype=torch.float32)
    if returned is None:
        raise AnswerError(f"returned nothing (None); {RIGHT}")
    if hasattr(returned, "close") and hasattr(returned, "send"):
        returned.close()  # else Python warns later of a coroutine that was never awaited
    raise AnswerError(f"returned {_what(returned)}; {RIGHT}")


def _tensor(returned: Tensor) -> Tensor:
    if returned.is_complex() or returned.is_meta or returned.layout != torch.strided or returned.is_quantized:
        kind = "meta" if returned.is_meta else str(returned.dtype if returned.layout == torch.strided else returned.layout)
        raise AnswerError(f"returned a tensor of {kind}; {RIGHT}")
    return returned.detach().to("cpu", torch.float32)


def _array(returned: Any) -> Tensor:
    if returned.dtype.kind not in "biuf":
        listed = ", as a list where some are None" if returned.dtype.kind == "O" else ""
        raise AnswerError(f"returned an array of {returned.dtype}; {RIGHT}{listed}")
    if isinstance(returned, np.ma.MaskedArray):
        returned = np.ma.filled(returned.astype(np.float32), np.nan)
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.array(returned, dtype=np.float32))


def _number(value: Any, index: int) -> float:
    """An element of a list: a number, None, or an array or tensor of one number."""
    if value is None:
        return math.nan
    if isinstance(value, list | tuple) and len(value) == 1:
        return _number(value[0], index)
    if isinstance(value, Tensor | np.ndarray | np.generic):
        single = _numbers(value)
        if single.numel() == 1:
            return single.item()
        raise AnswerError(f"returned a list whose element {index} has shape {tuple(single.shape)}; {RIGHT}")
    if not isinstance(value, numbers.Real):
        raise AnswerError(f"returned a list whose element {index} is {_what(value)}; {RIGHT}")
    try:
        return float(value)
    except OverflowError as error:
        raise AnswerError(f"returned a list whose element {index} is a number beyond 1e308") from error


def _what(value: Any) -> str:
    """A description such as "a dict", with the beginning of a text or a number."""
    kind = type(value).__name__
    article = "an" if kind[0].lower() in "aeiou" else "a"
    return f"{article} {kind}" + (f" ({repr(value)[:40]})" if isinstance(value, str | bytes | numbers.Number) else "")


def _error(output: Any) -> str:
    """The message in `extra_info["error"]`, in one line.

    Raises:
        AnswerError: `extra_info` is neither a mapping nor None.
    """
    info = output.extra_info if isinstance(output, RewardModelOutput) else None
    if info is None:
        return ""
    if not isinstance(info, Mapping):
        raise AnswerError(f"returned extra_info that is {_what(info)}; a dict belongs there, or None")
    message = info.get("error")
    if isinstance(message, list | tuple):  # one a sample
        return short("; ".join(dict.fromkeys(str(one) for one in message if one)))
    return "" if message is None or message is False else short(message)
