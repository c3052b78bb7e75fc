"""Environment variables of the allocator and of gloo that are set if the user has not set them. It imports only psutil beside the standard
library.

No variables of NCCL are set: torch already ends a process whose collective is late (TORCH_NCCL_ASYNC_ERROR_HANDLING is 3, or 1 from its
launcher, and its watchdog is monitored), and everything else depends on the cluster's network.
"""

import socket
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from flow_factory.distributed.threads import OURS, processes_here

ALLOCATORS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""The variables of the allocator. Torch reads the first one that is set."""
EXPANDABLE = "expandable_segments:True"
CHOSEN = "FF_ALLOCATOR"
"""The variable that records that this program has set the allocator."""
DRIVER = Path("/proc/driver/nvidia/version")
"""It exists with NVIDIA's driver for Linux, but not under WSL, where segments cannot grow."""
MAIN = "FF_MAIN_ADDRESS"
"""The address of machine 0 as given to the launcher. Processes on machine 0 itself use 127.0.0.1."""
ELSEWHERE = "192.0.2.1"
"""An address for documentation (RFC 5737), used to find the default route. Nothing is sent."""


def set_allocator(environment: MutableMapping[str, str], driver: Path = DRIVER) -> None:
    """Enables expandable CUDA segments, so that memory freed by one phase fits the next. To be called before torch is imported."""
    if driver.exists() and not any(environment.get(name) for name in ALLOCATORS):
        environment[ALLOCATORS[0]] = environment[CHOSEN] = EXPANDABLE


def environment_lines(environment: Mapping[str, str]) -> Iterator[str]:
    """A line for each variable that was set."""
    here = processes_here(environment)
    if here > 1 and environment.get(OURS) and environment.get(OURS) == environment.get("OMP_NUM_THREADS"):
        yield f"OMP_NUM_THREADS={environment[OURS]}: this machine's cores, divided among its {here} processes; a value that you set is kept"
    if environment.get(CHOSEN) and environment.get(CHOSEN) == environment.get(ALLOCATORS[0]):
        yield f"{ALLOCATORS[0]}={EXPANDABLE}: memory that one phase frees can be reused by the next; a value that you set is kept"


def set_interface(environment: MutableMapping[str, str]) -> str | None:
    """Sets gloo's interface to the one that reaches machine 0, if gloo would choose an unreachable one. Returns a line about it."""
    several = int(environment.get("WORLD_SIZE", "1")) > processes_here(environment)
    if not several or "LOCAL_WORLD_SIZE" not in environment or environment.get("GLOO_SOCKET_IFNAME"):
        return None
    found = interface_to(environment.get(MAIN) or environment["MASTER_ADDR"])
    if found is None:
        return None
    environment["GLOO_SOCKET_IFNAME"] = found
    return f"GLOO_SOCKET_IFNAME={found}: this machine's name, {socket.gethostname()}, resolves to an address that others cannot reach"


def interface_to(address: str) -> str | None:
    """The interface that reaches another machine, if this host's name, which gloo resolves, is a loopback address.

    None if gloo does not need it, if there is one machine, or if no interface is found.
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
    """This machine's address on the route to another one; "" without a route."""
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
        return "127.0.0.1"  # gloo then uses the loopback


def _loops(address: str) -> bool:
    return address.startswith("127.")
