"""Several processes: launching, rendezvous, barriers, collectives, liveness; `engines` are DDP, FSDP2 and DeepSpeed.

It knows no algorithm and no model family.
"""
