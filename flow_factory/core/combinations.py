"""The registry of `train.advantage_aggregation`: how several rewards become one advantage."""

from flow_factory.utils.registry import Registry

COMBINATIONS = Registry(
    "advantage_aggregation",
    {
        "gdpo": "flow_factory.core.advantage:gdpo",
        "sum": "flow_factory.core.advantage:group_advantage",
        "gardo": "flow_factory.core.advantage:diversity_scaled",
    },
)
"""A dotted path names a user's function, see `advantage.combined`."""
