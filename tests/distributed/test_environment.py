"""What a launcher should have set is set where the user has set nothing, and said."""

import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from flow_factory.distributed import environment
from flow_factory.distributed.environment import environment_lines, routed, set_allocator, set_interface
from flow_factory.distributed.threads import set_thread_counts

GROWS = "expandable_segments:True"
NAME = "PYTORCH_CUDA_ALLOC_CONF"


@pytest.mark.parametrize(
    ("own", "driver", "chosen"),
    [
        ({}, True, {NAME: GROWS, "FF_ALLOCATOR": GROWS}),
        ({}, False, {}),  # no GPU, or one under WSL
        ({NAME: "max_split_size_mb:512"}, True, {}),
        ({"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}, True, {}),
    ],
)
def test_segments_grow_on_nvidia_cards_where_the_user_says_nothing(
    tmp_path: Path, own: dict[str, str], driver: bool, chosen: dict[str, str]
) -> None:
    environment = dict(own)
    if driver:
        (tmp_path / "version").touch()
    set_allocator(environment, tmp_path / "version")
    assert environment == own | chosen
    lines = list(environment_lines(environment))
    assert len(lines) == bool(chosen) and all(line.startswith(f"{NAME}={GROWS}: ") for line in lines)


def test_threads_of_several_processes_are_said_and_the_users_are_not() -> None:
    environment = {"LOCAL_WORLD_SIZE": "4"}
    set_thread_counts(environment, 16)
    (line,) = environment_lines(environment)
    assert line.startswith("OMP_NUM_THREADS=4: this machine's cores, divided among its 4 processes")
    assert not list(environment_lines({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "4"}))
    alone: dict[str, str] = {}
    set_thread_counts(alone, 16)
    assert not list(environment_lines(alone))


WAYS = {"10.0.0.1": "10.0.0.7", "first": "127.0.1.1", environment.ELSEWHERE: "192.168.1.7", "nowhere": ""}
SEVERAL = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("variables", "host", "takes"),
    [
        (SEVERAL | {"MASTER_ADDR": "10.0.0.1"}, "127.0.1.1", "ib0"),
        (SEVERAL | {"MASTER_ADDR": "first"}, "127.0.1.1", "eth0"),  # machine 0, by its own name
        (SEVERAL | {"MASTER_ADDR": "127.0.0.1", "FF_MAIN_ADDRESS": "10.0.0.1"}, "127.0.1.1", "ib0"),  # machine 0, under this launcher
        (SEVERAL | {"MASTER_ADDR": "10.0.0.1"}, "10.0.0.7", None),  # gloo finds it by itself
        (SEVERAL | {"MASTER_ADDR": "127.0.0.1"}, "127.0.1.1", None),  # the machines are one
        (SEVERAL | {"MASTER_ADDR": "localhost"}, "127.0.1.1", None),
        (SEVERAL | {"MASTER_ADDR": "nowhere"}, "127.0.1.1", None),
        (SEVERAL | {"MASTER_ADDR": "10.0.0.1", "GLOO_SOCKET_IFNAME": "mine"}, "127.0.1.1", "mine"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}, "127.0.1.1", None),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}, "127.0.1.1", None),  # nobody says how many machines there are
    ],
)
def test_gloo_gets_the_interface_that_leads_to_machine_0_where_the_hosts_name_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], host: str, takes: str | None
) -> None:
    cards = {"lo": ["127.0.0.1"], "eth0": ["192.168.1.7"], "ib0": ["fe80::1", "10.0.0.7"]}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {k: [SimpleNamespace(address=a) for a in v] for k, v in cards.items()})
    monkeypatch.setattr(socket, "gethostbyname", lambda name: host)
    monkeypatch.setattr(environment, "routed", WAYS.get)
    mine = dict(variables)
    line = set_interface(mine)
    assert mine.get("GLOO_SOCKET_IFNAME") == takes
    assert (line is not None) == (takes not in (None, "mine")) and (
        line is None or line.startswith(f"GLOO_SOCKET_IFNAME={takes}: this machine's name")
    )


def test_the_way_to_an_address_is_asked_of_the_system() -> None:
    assert routed("127.0.0.1") == "127.0.0.1"
    assert routed("::1") == ""
