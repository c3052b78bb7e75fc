"""Names of the ways from several rewards to one advantage."""

from flow_factory.utils.registry import Registry

COMBINATIONS = Registry(
    "advantage_aggregation", {"gdpo": "flow_factory.core.advantage:gdpo", "sum": "flow_factory.core.advantage:group_advantage"}
)
"""Or a dotted path to a function of one's own, see `advantage.combined`."""
