"""What this machine's matrix products reach."""

import math
import time

import torch


def product_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """TFLOP/s of products of two square matrices here and now: what a card reaches depends on its power and temperature."""
    cuda = device.type == "cuda"
    side = 8192 if cuda else 512
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best, until = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < until or best == math.inf:
        wait(device)
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        wait(device)
        best = min(best, (time.perf_counter() - start) / 10)
    return 2 * side**3 / best * 1e-12


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
