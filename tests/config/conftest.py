"""The loader of the tests of this room."""

import pytest

from flow_factory.config import RunConfig, load_config
from tests.config.cases import GOOD


@pytest.fixture
def load(tmp_path):
    """load(text, *overrides) -> RunConfig"""

    def load(text: str = GOOD, *overrides: str) -> RunConfig:
        file = tmp_path / "run.yaml"
        file.write_text(text, "utf-8")
        return load_config(file, overrides)

    return load
