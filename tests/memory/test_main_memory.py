"""What a run's processes take of a machine's main memory while they load, measured on weights that are larger than what varies."""

import sys
from pathlib import Path

import pytest

from benchmarks.main_memory import measure

MORE = 300.0
"""MB that a process may take beyond what it trains and copies of that."""


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_takes_what_it_trains_and_no_whole_block_in_more_bits(tmp_path: Path) -> None:
    """Two blocks of 126 M weights and two of 63 M: the larger ones are 504 MB in float32."""
    for name, said in measure(tmp_path, 2, 3.2e8, ("lora", "full_by_fsdp2", "full_by_zero3")).items():
        zero = name == "full_by_zero3"
        for seen in said:
            assert seen["settled" if zero else "peak"] <= seen["trained"] + seen["copies"] + MORE, (name, seen)
            assert seen["end"] <= seen["trained"] * (1 + zero) + seen["copies"] + MORE, "of DeepSpeed's own are the gradients"
            assert (seen["trained"] > 500) == (seen["mapped"] < 1) == (name != "lora"), "a frozen weight stays in its file"
