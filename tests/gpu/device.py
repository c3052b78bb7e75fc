"""The device of these tests, and what holds on a real one only."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""A run chooses the same by itself."""
REAL = DEVICE == "cuda"
EAGER_COMPILE = [] if REAL else ["model.compile_backend=aot_eager"]
"""Keys with which a CPU compiles in seconds."""
