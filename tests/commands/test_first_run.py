"""The page of the first run on a GPU: its commands write the YAML that it shows, and its figures are the plan's."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from flow_factory.check import report
from flow_factory.cli import main
from flow_factory.config import load_config
from tests.tiny.run import ROOT

PAGE = (ROOT / "guidance" / "first_run.md").read_text()
COMMANDS = [shlex.split(line) for text in re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for line in text.splitlines()]
SHOWN, HELD_OUT = (yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
PEAK = re.compile(r"([\d.]+) GB  at the peak, estimated, of rewards only the weights; fits a 24 GB GPU")


@pytest.fixture
def written(tmp_path: Path) -> None:
    """The YAMLs of the page, in the current folder."""
    (tmp_path / "my_prompts").symlink_to(ROOT / "dataset" / "prompts")
    for words in COMMANDS:
        if words[:2] == ["ff-train", "init"]:
            assert main(words[1:]) == 0


def peak(file: str, *overrides: str) -> str:
    """GB of the plan for a card of 24 GB."""
    found = PEAK.search(report(load_config(file, overrides), 24.0)[0])
    assert found is not None, overrides
    return found[1]


@pytest.mark.slow
def test_the_recipe_for_one_card_is_what_init_writes_and_its_figures_are_the_plans(written: None) -> None:
    made = yaml.safe_load(Path("sd3.yaml").read_text())
    assert made == SHOWN
    Path("sd3.yaml").write_text(yaml.safe_dump(made | HELD_OUT))
    plan = report(load_config("sd3.yaml"), 24.0)[0]
    (excerpt,) = re.findall(r"^```\n(  samples an epoch.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert [line for line in excerpt.splitlines() if line not in plan] == []
    assert peak("sd3.yaml") == "12.13"
    assert f"eval.resolution=1024`) {peak('sd3.yaml', 'train.resolution=1024', 'eval.resolution=1024')} GB" in PAGE
    assert f"`train.enable_gradient_checkpointing=false` {peak('sd3.yaml', 'train.enable_gradient_checkpointing=false')} GB" in PAGE
    assert f"{peak('flux.yaml')} GB at the peak" in PAGE
    assert main(["init", "--model", "sd3-5", "--algorithm", "grpo", "--gpu", "24", "--data", "my_prompts", "--out", "grpo.yaml"]) == 0
    assert f"{peak('grpo.yaml')} GB at the peak, with evaluations of 1024 pixels" in PAGE
