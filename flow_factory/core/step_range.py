"""The steps of a schedule that are in a range of its length. The validation of configs uses it, so it does not import torch."""


def index_window(steps: int, timestep_range: tuple[float, float]) -> tuple[int, int]:
    """The steps [first, last) of a schedule that are in the range: [floor(n lo), floor(n hi))."""
    low, high = (int(steps * share + 1e-9) for share in timestep_range)
    return low, high
