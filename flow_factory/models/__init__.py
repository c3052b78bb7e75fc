"""Model families by name."""

from flow_factory.registry import Registry

MODELS = Registry("model", {"flux1": "flow_factory.models.flux1:Flux1"})
