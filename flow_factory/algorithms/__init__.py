"""Algorithms by the name of `train.trainer_type`."""

from flow_factory.registry import Registry

ALGORITHMS = Registry("algorithm", {"grpo": "flow_factory.algorithms.grpo:GRPO"})
