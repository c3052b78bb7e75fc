"""The order of rows: the same on any number of processes, each row once a cycle."""

import pytest
import torch

from flow_factory.data.order import EpochGroup, Order


@pytest.mark.parametrize(("num_rows", "per_epoch"), [(10, 4), (8, 8), (3, 8), (7, 3), (13, 12), (1, 2)])
def test_every_row_comes_up_once_a_cycle(num_rows, per_epoch):
    stream = [s.row for epoch in range(6 * num_rows) for s in Order((num_rows,), per_epoch, 0).epoch(epoch)]
    cycles = [stream[k : k + num_rows] for k in range(0, len(stream), num_rows)]
    assert all(sorted(cycle) == list(range(num_rows)) for cycle in cycles)
    assert num_rows < 7 or len({tuple(c) for c in cycles}) > 1


@pytest.mark.parametrize(("num_rows", "per_epoch"), [(10, 4), (10, 8), (9, 9), (13, 12), (100, 48), (11, 7)])
def test_no_epoch_has_a_row_twice(num_rows, per_epoch):
    for seed in range(3):
        for epoch in range(3 * num_rows):
            rows = [s.row for s in Order((num_rows,), per_epoch, seed).epoch(epoch)]
            assert len(set(rows)) == per_epoch


def test_every_row_is_as_likely_at_every_place():
    counts = torch.zeros(10, 10)
    for seed in range(400):
        stream = [s.row for epoch in range(2, 5) for s in Order((10,), 8, seed).epoch(epoch)]
        for place, row in enumerate(stream[4:14]):  # the second cycle, which an epoch enters half-way
            counts[place, row] += 1
    assert (counts - 40).abs().max() < 6 * 40**0.5


@pytest.mark.parametrize(("num_rows", "per_epoch", "epochs"), [(10, 3, 0), (10, 3, 1), (10, 3, 3), (10, 3, 4), (4, 6, 1), (7, 7, 2)])
def test_the_rows_of_some_epochs_are_known_before(num_rows, per_epoch, epochs):
    there = {group.row for epoch in range(epochs) for group in Order((num_rows,), per_epoch, 3).epoch(epoch)}
    assert Order((num_rows,), per_epoch, 3).drawn(epochs) == there


def test_the_order_is_kept_between_versions():
    """A run that is resumed with another numpy must go on as it began."""
    assert Order((10,), 4, seed=42).epoch(3) == [EpochGroup(0, 6), EpochGroup(1, 2), EpochGroup(2, 4), EpochGroup(3, 3)]


def test_the_order_depends_on_seed_and_epoch_alone():
    torch.manual_seed(0)
    first = Order((50,), 10, 1).epoch(7)
    state = torch.get_rng_state()
    assert Order((50,), 10, 1).epoch(7) == first != Order((50,), 10, 2).epoch(7)
    assert torch.equal(state, torch.get_rng_state())
