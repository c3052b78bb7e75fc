"""Rewards as people write them by mistake, by name: what the line must say, and the reward's body or its answer for two samples."""

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from flow_factory.rewards import RewardModelOutput


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Sized:
    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Any:
        return iter([0.1, 0.2])


async def later() -> list[float]:
    return [0.1, 0.2]


def raises(error: BaseException) -> Callable[[], Any]:
    def body() -> Any:
        raise error

    return body


def unpack() -> Any:
    first, second = [1]  # type: ignore[misc]
    return first, second


def deep() -> Any:
    return deep()


out = RewardModelOutput
TAKEN: dict[str, tuple[Any, list[float]]] = {
    "list": ([0.5, 2], [0.5, 2.0]),
    "tuple": ((0.5, 2), [0.5, 2.0]),
    "bools": ([True, False], [1.0, 0.0]),
    "bool tensor": (torch.tensor([True, False]), [1.0, 0.0]),
    "numpy scalars": ([np.float64(0.5), np.int8(2)], [0.5, 2.0]),
    "scalar tensors": ([torch.tensor(0.5), torch.tensor([2.0])], [0.5, 2.0]),
    "float16 array": (np.array([0.5, 2], np.float16), [0.5, 2.0]),
    "big-endian array": (np.array([0.5, 2], ">f8"), [0.5, 2.0]),
    "reversed array": (np.array([2, 0.5])[::-1], [0.5, 2.0]),
    "masked array": (np.ma.MaskedArray([0.5, 2], [False, True]), [0.5, -1.0]),
    "bf16": (torch.tensor([0.5, 2], dtype=torch.bfloat16), [0.5, 2.0]),
    "float64": (torch.tensor([0.5, 2], dtype=torch.float64), [0.5, 2.0]),
    "integers": (torch.tensor([1, 2]), [1.0, 2.0]),
    "with gradient": (torch.tensor([0.5, 2], requires_grad=True), [0.5, 2.0]),
    "column": (torch.tensor([[0.5], [2]]), [0.5, 2.0]),
    "column array": (np.array([[0.5], [2]]), [0.5, 2.0]),
    "column of lists": ([[0.5], [2]], [0.5, 2.0]),
    "one missing": ([None, 2], [-1.0, 2.0]),
    "NaN and infinity": ([float("nan"), float("inf")], [-1.0, -1.0]),
    "beyond float32": (np.array([1e39, 2]), [-1.0, 2.0]),
    "output of a list": (out([0.5, 2]), [0.5, 2.0]),
    "output of a column": (out(torch.ones(2, 1), {"error": ""}), [1.0, 1.0]),
    "an error beside scores": (out([0.0, 0.0], {"error": "server down"}), [0.0, 0.0]),
    "errors by sample": (out([0.0, None], {"error": ["", "too long"]}), [0.0, -1.0]),
    "an error that is an array": (out([0.0, 1.0], {"error": np.array([1, 2])}), [0.0, 1.0]),
}
"""What comes and the scores that it is, -1 where one is missing."""

REFUSED: dict[str, tuple[str, Any]] = {
    "nothing": (r"returned nothing \(None\)", None),
    "dict": ("returned a dict", {0: 0.1, 1: 0.2}),
    "dict of a list": ("returned a dict", {"rewards": [0.1, 0.2]}),
    "set": ("returned a set", {0.1, 0.2}),
    "frozenset": ("returned a frozenset", frozenset((0.1, 0.2))),
    "text": (r"returned a str \('12'\)", "12"),
    "bytes": ("returned a bytes", b"12"),
    "bytearray": ("returned a bytearray", bytearray(b"12")),
    "number": (r"returned a float \(0.5\)", 0.5),
    "bool": (r"returned a bool \(True\)", True),
    "complex": ("returned a complex", 1j),
    "range": ("returned a range", range(2)),
    "generator": ("returned a generator", (x for x in (0.1, 0.2))),
    "map": ("returned a map", map(float, (0.1, 0.2))),
    "deque": ("returned a deque", deque((0.1, 0.2))),
    "keys": ("returned a dict_keys", {0.1: 0, 0.2: 0}.keys()),
    "an iterable of one's own": ("returned a Sized", Sized()),
    "namespace": ("returned a SimpleNamespace", SimpleNamespace(rewards=[0.1, 0.2])),
    "class": ("returned an? (type|ABCMeta)", RewardModelOutput),
    "function": ("returned a function", later),
    "ellipsis": ("returned an ellipsis", ...),
    "too few": (r"returned scores of shape \(1,\) for 2 samples", [0.1]),
    "too many": (r"returned scores of shape \(3,\) for 2 samples", [0.1, 0.2, 0.3]),
    "none at all": (r"returned scores of shape \(0,\)", []),
    "row": (r"returned scores of shape \(1, 2\)", torch.ones(1, 2)),
    "row of lists": (r"element 0 is a list", [[0.1, 0.2]]),
    "matrix": (r"returned scores of shape \(2, 2\)", torch.ones(2, 2)),
    "deep column": (r"returned scores of shape \(2, 1, 1\)", np.ones((2, 1, 1))),
    "mean of all": (r"returned scores of shape \(\)", torch.tensor(0.5)),
    "mean of all, numpy": (r"returned scores of shape \(\)", np.float64(0.5)),
    "complex tensor": ("returned a tensor of torch.complex64", torch.ones(2, dtype=torch.complex64)),
    "meta tensor": ("returned a tensor of meta", torch.ones(2, device="meta")),
    "sparse tensor": ("returned a tensor of torch.sparse_coo", torch.ones(2).to_sparse()),
    "objects": ("returned an array of object.*as a list where some are None", np.array([0.1, None], dtype=object)),
    "texts in an array": ("returned an array of <U3", np.array(["0.1", "0.2"])),
    "complex array": ("returned an array of complex128", np.array([1j, 2j])),
    "dates": ("returned an array of datetime64", np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]")),
    "structured array": ("returned an array of", np.zeros(2, dtype=[("score", "f4")])),
    "texts": (r"element 0 is a str \('0.1'\)", ["0.1", "0.2"]),
    "texts and numbers": (r"element 1 is a str \('N/A'\)", [0.1, "N/A"]),
    "dicts": ("element 0 is a dict", [{"score": 0.1}, {"score": 0.2}]),
    "tuples of two": ("element 0 is a tuple", [(0.1, "a"), (0.2, "b")]),
    "complex numbers": ("element 0 is a complex", [1j, 2j]),
    "decimals": ("element 0 is a Decimal", [Decimal("0.1"), Decimal("0.2")]),
    "tensors of two": (r"element 0 has shape \(2,\)", [torch.ones(2), torch.ones(2)]),
    "an integer without end": ("element 1 is a number beyond 1e308", [0, 10**400]),
    "scores and notes": ("element 0 is a list", ([0.1, 0.2], {"note": 1})),
    "output of nothing": (r"returned nothing \(None\)", out(None)),  # type: ignore[arg-type]
    "output of a dict": ("returned a dict", out({"a": [0.1, 0.2]})),  # type: ignore[arg-type]
    "output of an output": ("returned a RewardModelOutput", out(out([0.1, 0.2]))),  # type: ignore[arg-type]
    "notes that are a text": ("returned extra_info that is a str", out([0.1, 0.2], "fine")),  # type: ignore[arg-type]
    "notes that are a list": ("returned extra_info that is a list", out([0.1, 0.2], [{}])),  # type: ignore[arg-type]
}
"""Each is `reward 'it' ` and this."""

RAISED: dict[str, tuple[str, Callable[[], Any]]] = {
    "KeyError": ("KeyError: 'score'", lambda: {}["score"]),
    "ZeroDivisionError": ("ZeroDivisionError: division by zero", lambda: 1 / 0),
    "AttributeError": ("AttributeError: ", lambda: None.score),  # type: ignore[attr-defined]
    "TypeError": ("TypeError: ", lambda: None + 1),  # type: ignore[operator]
    "unpacking": ("ValueError: not enough values", unpack),
    "no message": ("AssertionError \\(", raises(AssertionError())),
    "several lines": ("ValueError: one two \\(", raises(ValueError("one\n  two"))),
    "a page": (r"ValueError: x{400}… \(", raises(ValueError("x" * 10_000))),
    "a message that raises": ("Mute: its message cannot be shown", raises(Mute())),
    "StopIteration": ("StopIteration", lambda: next(iter(()))),
    "GeneratorExit": ("GeneratorExit", raises(GeneratorExit())),
    "sys.exit(0)": (r"it ended the program, by SystemExit\(0\)", lambda: sys.exit(0)),
    "sys.exit()": (r"it ended the program, by SystemExit\(None\)", sys.exit),
    "sys.exit with a text": (r"it ended the program, by SystemExit\('bye'\)", lambda: sys.exit("bye")),
    "CancelledError": ("CancelledError", raises(asyncio.CancelledError())),
    "of BaseException": ("BaseException: odd", raises(BaseException("odd"))),
    "RecursionError": ("RecursionError", deep),
    "MemoryError": ("MemoryError", raises(MemoryError())),
    "missing module": ("ModuleNotFoundError: No module named 'not_there'", lambda: __import__("not_there")),
    "missing file": ("FileNotFoundError: .*nowhere", lambda: open("nowhere").read()),  # noqa: PTH123, SIM115
    "timeout": ("TimeoutError: timed out", raises(TimeoutError("timed out"))),
    "chained": ("RuntimeError: outer", raises(RuntimeError("outer"))),
    "shapes": ("RuntimeError: .*size", lambda: torch.ones(2) + torch.ones(3)),
    "inside torch": ("RuntimeError: ", lambda: torch.nn.functional.linear(torch.ones(2), torch.ones(3, 3))),
    "a device that is not there": ("(RuntimeError|AssertionError): ", lambda: torch.ones(2, device="cuda:99")),
    "coroutine": ("returned a coroutine", later),
}
"""Each fails so on two samples, with file and line."""
