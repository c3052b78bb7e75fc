"""What several files of rewards share: requests without pauses, and a server of rewards."""

from collections.abc import Iterator

import pytest

from tests.rewards.remote import RANKS
from tests.tiny.reward_server import Reads, entry, service


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between requests, and nothing remembered of what the server's reward has seen."""
    monkeypatch.setattr("flow_factory.rewards.failures.PAUSE", 0.001)
    monkeypatch.setattr(Reads, "gate", None)
    Reads.seen.clear()
    Reads.batches.clear()


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    clips = entry("tests.tiny.rewards:Bright", "bright")
    size = entry("jpeg_compressibility", "size")
    with service(entry(), entry(RANKS, "ranks"), clips, size) as (address, _):
        yield address
