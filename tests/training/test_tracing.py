"""`profile:` traces the first steps of one epoch's phases."""

import gzip
import json
import re
from pathlib import Path

import pytest

from flow_factory.config import load_config
from flow_factory.config.base import ConfigError
from tests.tiny.run import tiny, write_run

ATTENTION = "aten::scaled_dot_product_attention"


def attentions(file: Path) -> int:
    with gzip.open(file) as stream:
        return sum(event.get("name") == ATTENTION for event in json.load(stream)["traceEvents"])


@pytest.mark.exhaustive
def test_the_first_steps_of_one_epoch_are_traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("eval.eval_freq=0", "train.num_inference_steps=2", "train.gradient_step_per_epoch=1")
    run = tiny(tmp_path, *keys, "profile={epoch: 2, steps: 1}")
    run.trainer.epoch()
    assert not (run.folder / "profile").exists()
    run.trainer.epoch()
    made = sorted(path.name for path in (run.folder / "profile").iterdir())
    assert made == [f"epoch_2_{phase}_process_0.json.gz" for phase in ("optimise", "reward", "rollout")]
    rollout, learned = (attentions(run.folder / "profile" / f"epoch_2_{phase}_process_0.json.gz") for phase in ("rollout", "optimise"))
    assert rollout - 1 == 2 * learned > 0, "a call of two steps and the VAE's own attention; and of the training the forward of one point"
    assert f"note: profile: traces of epoch 2 are in {run.folder}/profile; open one in" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "said"), [
    ("{epoch: 3}", "profile.epoch: 3 is more than the 2 epochs of the run (train.max_epochs); write 2"),
    ("{epoc: 1}", "profile.epoc: unknown key. Did you mean 'epoch'?"),
    ("{epoch: 0}", "profile.epoch: must be greater than or equal to 1, got 0"),
    ("{steps: 1.5}", "profile.steps: wants a whole number"),
    ("true", "profile: wants a mapping"),
    ("{processes: both}", "profile.processes: "),
])  # fmt: skip
def test_what_cannot_be_traced_is_refused(tmp_path: Path, given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config(write_run(tmp_path), [f"profile={given}"])
