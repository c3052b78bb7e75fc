"""`python -m flow_factory` is `ff-train`."""

import sys

from flow_factory.cli import main

sys.exit(main())
