"""A reward's code runs in peace: what of this process it may change is as before afterwards, and a call may have a limit of time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def kept() -> Iterator[None]:
    """Gradients on or off, the default dtype and the current folder are afterwards what they were."""
    grad, dtype, folder = torch.is_grad_enabled(), torch.get_default_dtype(), Path.cwd()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        if torch.get_default_dtype() is not dtype:
            torch.set_default_dtype(dtype)
        if Path.cwd() != folder:
            os.chdir(folder)
