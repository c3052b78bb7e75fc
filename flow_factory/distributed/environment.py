"""What a launcher should have set beside the threads, each where the user has set nothing. Standard library alone, but for psutil.

Of NCCL nothing: torch ends a process whose collective is late by itself (TORCH_NCCL_ASYNC_ERROR_HANDLING is 3, or 1 from its launcher, and
its watchdog is watched), and all else depends on the cluster's network.
"""

import socket
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from flow_factory.distributed.threads import OURS, processes_here

ALLOCATORS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Torch reads the first one that is set."""
EXPANDABLE = "expandable_segments:True"
CHOSEN = "FF_ALLOCATOR"
"""That this program chose it."""
DRIVER = Path("/proc/driver/nvidia/version")
"""There with NVIDIA's driver for Linux; not under WSL, where segments cannot grow."""
MAIN = "FF_MAIN_ADDRESS"
"""Machine 0 as it was named to the launcher, whose processes on machine 0 itself meet at 127.0.0.1."""
ELSEWHERE = "192.0.2.1"
"""An address for documentation (RFC 5737): the way there is the way out. Nothing is sent."""


def settle_allocator(environment: MutableMapping[str, str], driver: Path = DRIVER) -> None:
    """Lets CUDA segments grow, so that what one phase leaves fits the tensors of the next; to be called before torch is imported."""
    if driver.exists() and not any(environment.get(name) for name in ALLOCATORS):
        environment[ALLOCATORS[0]] = environment[CHOSEN] = EXPANDABLE


def settled_lines(environment: Mapping[str, str]) -> Iterator[str]:
    """What was set for the user, a line each."""
    here = processes_here(environment)
    if here > 1 and environment.get(OURS) and environment.get(OURS) == environment.get("OMP_NUM_THREADS"):
        yield f"OMP_NUM_THREADS={environment[OURS]}: this machine's cores, divided among its {here} processes; a value that you set is kept"
    if environment.get(CHOSEN) and environment.get(CHOSEN) == environment.get(ALLOCATORS[0]):
        yield f"{ALLOCATORS[0]}={EXPANDABLE}: memory that one phase frees can be reused by the next; a value that you set is kept"


def settle_interface(environment: MutableMapping[str, str]) -> str | None:
    """Gives gloo the interface that leads to machine 0, where there are several and it would take one that leads nowhere; a line on it."""
    several = int(environment.get("WORLD_SIZE", "1")) > processes_here(environment)
    if not several or "LOCAL_WORLD_SIZE" not in environment or environment.get("GLOO_SOCKET_IFNAME"):
        return None
    found = interface_to(environment.get(MAIN) or environment["MASTER_ADDR"])
    if found is None:
        return None
    environment["GLOO_SOCKET_IFNAME"] = found
    return f"GLOO_SOCKET_IFNAME={found}: this machine's name, {socket.gethostname()}, resolves to an address that others cannot reach"


def interface_to(address: str) -> str | None:
    """The interface by which another machine is reached, where the host's own name, which gloo goes by, leads to itself alone.

    None where gloo can do without, where the machines are one, or where no interface is found.
    """
    import psutil

    if not _loops(_resolved(socket.gethostname())) or address == "localhost" or _loops(address):
        return None
    mine = routed(address)
    if _loops(mine):  # this is machine 0, and the address its own name
        mine = routed(ELSEWHERE)
    names = [name for name, addresses in psutil.net_if_addrs().items() if mine in [a.address for a in addresses]]
    return names[0] if names and not _loops(mine) else None


def routed(address: str) -> str:
    """This machine's own address on the way there; "" where there is no way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def _resolved(name: str) -> str:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return "127.0.0.1"  # gloo then takes the loopback


def _loops(address: str) -> bool:
    return address.startswith("127.")
