"""The rows of each process, divided as `Tensor.chunk` divides."""

from collections.abc import Sequence

from torch import Tensor

from flow_factory.checkpoints.state_files import Slab


def first_of(rows: int, number: int, shares: int) -> int:
    """The first row of share `number`; the number of rows if nothing is left for it."""
    return min(rows, number * -(-rows // shares))


def share_of(rows: Tensor, number: int, shares: int) -> Tensor:
    """This share of some rows."""
    return rows[first_of(len(rows), number, shares) : first_of(len(rows), number + 1, shares)]


def slab_of(rows: Tensor, first: int, shape: Sequence[int], number: int = 0, shares: int = 1) -> Slab:
    """A copy of a share of rows of a tensor of this shape, of which the first has this number."""
    return Slab(share_of(rows.detach(), number, shares).to("cpu", copy=True), first + first_of(len(rows), number, shares), tuple(shape))
