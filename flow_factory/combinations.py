"""Names of the ways from several rewards to one advantage."""

from flow_factory.registry import Registry

COMBINATIONS = Registry("advantage_aggregation", {"gdpo": "flow_factory.advantage:gdpo", "sum": "flow_factory.advantage:group_advantage"})
"""Or a dotted path to a function of one's own, see `advantage.combined`."""
