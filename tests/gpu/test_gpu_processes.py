"""Two processes that share one GPU, over gloo: NCCL wants a GPU for each."""

import multiprocessing
import os
import re
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException

from flow_factory.cli import main
from tests.tiny.killed import trap
from tests.tiny.patience import Watch
from tests.tiny.run import LOST, ROOT, free_port, logged, write_run
from tests.tiny.several import SMOOTH, assert_same_start, assert_same_weights, several
from tests.tiny.side_by_side import SAID, member

pytestmark = pytest.mark.gpu


def share_the_card(rank: int) -> None:
    """The first card is everybody's, and the group has no NCCL; `join_group` then finds it made."""
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo")


def test_ddp_on_one_card_learns_what_one_process_learns(tmp_path: Path) -> None:
    several(tmp_path, 1, {"one": SMOOTH})
    several(tmp_path, 2, {"two": SMOOTH}, begin=share_the_card)
    one, two = (tmp_path / "save" / name for name in ("one", "two"))
    assert_same_start(logged(one), logged(two))
    assert_same_weights(two, one)


def test_fsdp2_on_one_card_learns_what_one_process_learns(tmp_path: Path) -> None:
    """As far as gloo's collectives go on a GPU."""
    several(tmp_path, 1, {"one": SMOOTH})
    try:
        several(tmp_path, 2, {"two": [*SMOOTH, f"config_file={ROOT}/examples/launch/fsdp2.yaml"]}, begin=share_the_card)
    except ProcessException as error:
        if "gloo" in str(error).lower():
            pytest.xfail(f"gloo: {str(error).strip().splitlines()[-1]}")
        raise
    assert_same_weights(tmp_path / "save" / "two", tmp_path / "save" / "one")


def command(rank: int, arguments: tuple[str, ...]) -> None:
    """`ff-train` as one of two; the second is killed in its second epoch."""
    share_the_card(rank)
    if rank == 1:
        trap("flow_factory.training.learner:Learner.learn", 2, partial(os.kill, os.getpid(), signal.SIGKILL))
    sys.exit(main(arguments))


def test_where_one_of_two_is_killed_the_other_says_so_and_ends(tmp_path: Path) -> None:
    write_run(tmp_path)
    multiprocessing.set_forkserver_preload([__name__])
    context, port = multiprocessing.get_context("forkserver"), free_port()
    given = (("tiny.yaml", "num_processes=2"),)
    both = [context.Process(target=member, args=(rank, 2, port, tmp_path, command, given)) for rank in (0, 1)]
    watch = Watch(tmp_path)
    try:
        for process in both:
            process.start()
        while any(process.is_alive() for process in both):
            both[0].join(0.5)
            watch.check("two processes, one of which is killed,")
    finally:
        for process in both:
            process.kill()
            process.join()
    assert [process.exitcode for process in both] == [1, -signal.SIGKILL]
    assert re.search(LOST, (tmp_path / f"{SAID}.0").read_text())
