"""`python -m flow_factory` is `ff-train`."""

from flow_factory.command import run

run()
