"""What a run's report says of its config: the keys that were written with another value than their default."""

from pathlib import Path

from flow_factory.config import load_config
from flow_factory.config.changed import settings

ROOT = Path(__file__).parents[2]


def test_a_key_is_changed_if_it_was_written_with_another_value_than_its_default() -> None:
    overrides = ["log.save_dir=save", "train.max_sequence_length=12", "log.project=Mine", "rewards.0.weight=2"]
    found = {s.key: s for s in settings(load_config(ROOT / "examples/quickstart.yaml", overrides))}
    assert found["log.project"].default == "Flow-Factory" and found["log.project"].value == '"Mine"'
    assert found["train.lr_scheduler"].default == "constant" and found["rewards.0.weight"].changed
    assert found["train.max_sequence_length"].changed and found["train.max_sequence_length"].default is None, "an argument of the pipeline"
    assert not found["log.save_dir"].changed, "written as it is by default"
    assert not found["train.seed"].changed and not found["eval_rewards.1.weight"].changed
