"""`--check` says what an evaluation takes beside an epoch: as many forwards as a run does."""

import re
from pathlib import Path

import pytest
from diffusers import FluxTransformer2DModel

from flow_factory.check import check
from flow_factory.config import load_config
from flow_factory.runs import evaluation_plan
from flow_factory.runs.evaluation_plan import epoch_forwards, evaluation_forwards, evaluation_lines
from tests.tiny.run import TEST, forwards, tiny, write_run

NFT = ("train.trainer_type=nft", "train.off_policy=true", "train.kl_beta=0.1", "train.num_train_timesteps=2")


@pytest.mark.slow
@pytest.mark.parametrize("keys", [("train.kl_beta=0.1",), pytest.param((*NFT, "train.num_inner_epochs=2"), id="nft")])
def test_a_run_does_the_forwards_that_are_said(keys: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an epoch after the first, in which the run also looks at what its first update does."""
    monkeypatch.setattr(evaluation_plan, "BACKWARD", 0)
    run = tiny(tmp_path, *keys, "train.enable_gradient_checkpointing=false", "eval.per_device_batch_size=1", "eval.group_size=2")
    config = run.context.config
    run.trainer.epoch()
    with forwards(FluxTransformer2DModel) as epoch:
        run.trainer.epoch()
    assert len(epoch) * config.train.per_device_batch_size == epoch_forwards(config)
    assert run.evaluators
    with forwards(FluxTransformer2DModel) as evaluation:
        run.evaluators[0].run()
    assert len(evaluation) == evaluation_forwards(config, len(TEST)) == 4 * 2 * 3


def test_an_evaluation_that_takes_more_than_a_tenth_is_remarked_on_and_the_advice_is_right(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    for overrides in (
        [],
        ["eval.num_inference_steps=30"],
        ["num_processes=2"],
        ["eval.resolution=64", "eval.eval_freq=40", "train.max_epochs=40"],
    ):
        config, test = load_config(file, overrides), {"": 2000}
        line, note = evaluation_lines(config, test)
        advised = re.fullmatch(r"note: that is more than a tenth; it would be less with eval\.max_rows: (\d+) (or|and) a larger .*", note)
        assert advised is not None and "all 2000 test rows" in line and int(advised[1]) % config.teams == 0
        few = evaluation_lines(load_config(file, [*overrides, f"eval.max_rows={advised[1]}"]), test)
        assert (len(few) == 1) == (advised[2] == "or") and f"{advised[1]} of 2000 test rows" in few[0]
        more = evaluation_lines(load_config(file, [*overrides, f"eval.max_rows={int(advised[1]) + config.teams}"]), test)
        assert len(more) == 2, "the most that are less than a tenth"


def test_check_says_it(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    assert "evaluation: all 4 test rows, 12 forwards of " in check(load_config(file))
    full = check(load_config(file, ["eval.max_rows=1", "eval.full_at_end=true"]))
    assert "evaluation: 1 of 4 test rows, 3 forwards of " in full
    assert "the evaluation at the end takes all 4 test rows: 12 forwards a process" in full
    assert "evaluation: none" in check(load_config(file, ["eval.eval_freq=0"])) and evaluation_lines(load_config(file), {}) == [
        "evaluation: none"
    ]
