"""The peak memory of a process: of its GPU, or of its main memory if it has none."""

import resource

import torch


class PeakMemory:
    """Peaks since the start of the run, although torch's own counters start again with each phase."""

    def __init__(self, device: torch.device):
        self.device, self.cuda = device, device.type == "cuda"
        self.allocated = self.reserved = 0.0
        """GB at the last `restart`."""

    def restart(self) -> float:
        """Starts torch's counters again and returns the peak since the last call, in GB."""
        peak = torch.cuda.max_memory_allocated(self.device) / 1e9
        self.allocated, self.reserved = self.allocated_gb(), self.reserved_gb()
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak

    def share_of_card(self) -> float:
        """The peak as a share of the device's memory; 0 on a CPU."""
        if not self.cuda:
            return 0.0
        return self.allocated_gb() * 1e9 / torch.cuda.get_device_properties(self.device).total_memory

    def allocated_gb(self) -> float:
        """Peak memory in GB: of tensors on the device, or of the process on a CPU."""
        if self.cuda:
            return max(self.allocated, torch.cuda.max_memory_allocated(self.device) / 1e9)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    def reserved_gb(self) -> float:
        """Peak memory in GB that torch's allocator has reserved on the device; 0 on a CPU."""
        return max(self.reserved, torch.cuda.max_memory_reserved(self.device) / 1e9) if self.cuda else 0.0
