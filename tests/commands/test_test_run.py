"""A test run does everything once, leaves nothing, and says what the run will take."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from flow_factory.commands.test_run import rehearse
from flow_factory.config import RunConfig, load_config, plan_of
from flow_factory.rewards.jpeg import JpegCompressibility
from flow_factory.training.forecast import StepTimes, forecast, shrunk, times
from flow_factory.training.learner import Learner
from flow_factory.utils.errors import UserError
from tests.tiny.run import ROOT, ff_train, write_run


@pytest.fixture(autouse=True)
def _new_process() -> None:
    """What accelerate keeps of an earlier run's precision."""
    AcceleratorState._reset_state(reset_partial_state=True)


EXAMPLES = ("quickstart", "quickstart/dpo", "grpo/lora/flux1", "nft/lora/wan22_t2v", "dgpo/lora/sd3_5")


@pytest.mark.parametrize("processes", [1, 2, 8])
@pytest.mark.parametrize("name", EXAMPLES)
def test_only_numbers_shrink_and_processes_share_out_as_before(name: str, processes: int) -> None:
    config = load_config(ROOT / f"examples/{name}.yaml", [f"num_processes={processes}", "data.sampler_type=auto"])
    few = shrunk(config)
    real, small = plan_of(config), plan_of(few)
    assert 2 <= small.groups <= real.groups and small.rolled.whole == real.rolled.whole
    assert small.micro_batches_per_rank >= min(2, real.micro_batches_per_rank)
    assert small.groups <= max(2, 2 * processes), "two groups a process are enough"
    train = {"max_epochs", "unique_sample_num_per_epoch", "gradient_step_per_epoch", "gradient_accumulation_steps"}
    changed = {f"{section}.{key}" for section in ("train", "eval") for key, value in vars(getattr(few, section)).items()
               if value != getattr(getattr(config, section), key, None)}  # fmt: skip
    assert changed <= {f"train.{key}" for key in train} | {"eval.max_rows", "eval.full_at_end"}
    assert {k: v for k, v in vars(few).items() if k not in ("train", "eval")} == {
        k: v for k, v in vars(config).items() if k not in ("train", "eval")
    }


class Hands:
    """A clock that is set, in place of a meter."""

    now, cuda = 0.0, False

    def tick(self) -> float:
        return self.now

    def seconds(self, since: float, until: float) -> float:
        return until - since


def played(config: RunConfig, costs: dict[str, float], first: float, live: Sequence[bool]) -> tuple[Any, float]:
    """(what is seen of an epoch in which everything takes what it costs, the first of each `first` times that; the seconds of it all)."""
    plan, hands = plan_of(config), Hands()
    paces, seen = StepTimes(hands), set[str]()  # type: ignore[arg-type]

    def do(phase: str, what: str) -> None:
        hands.now += costs[what] * (first if what not in seen else 1)
        seen.add(what)
        paces.steps(phase, what)

    paces.begins("rollout")
    for k in range(plan.micro_batches_per_rank // plan.drawn_together):
        do("rollout", "call")
        if k % 2:  # rewards are asked in between
            paces.begins("reward")
            hands.now += costs["reward"]
            paces.ends("reward")
    paces.ends("rollout")
    paces.begins("optimise")
    for alive in live:
        for _ in range(plan.trained_batches_per_rank - alive * plan.micro_batches_per_update):
            do("optimise", "looking back")
    for _ in range(plan.optimiser_steps_per_epoch):
        for _ in range(plan.micro_batches_per_update):
            do("optimise", "micro-batch")
        do("optimise", "update")
    paces.ends("optimise")
    return paces.seconds(), hands.now


@pytest.mark.parametrize("live", [(), (True,), (False, True)])
@pytest.mark.parametrize("keys", [
    (), ("train.num_inner_epochs=2",), ("train.group_size=6", "train.unique_sample_num_per_epoch=4", "train.gradient_step_per_epoch=3"),
])  # fmt: skip
def test_an_epoch_takes_what_two_of_its_groups_foretell(tmp_path: Path, keys: tuple[str, ...], live: tuple[bool, ...]) -> None:
    config = load_config(write_run(tmp_path), ["train.unique_sample_num_per_epoch=12", "train.max_epochs=10", *keys])
    costs = {"call": 3.0, "reward": 2.0, "looking back": 1.0, "micro-batch": 5.0, "update": 0.5}
    few = shrunk(config)
    found = forecast(config, few, played(few, costs, 4.0, live)[0], (0, 0), live)
    usual, whole = played(config, costs, 1.0, live)[1], played(config, costs, 4.0, live)[1]
    assert sum(found.phases.values()) == pytest.approx(usual, rel=0.05)
    assert found.once == pytest.approx(whole - usual, rel=0.05), "and what is done at the first time is apart"


@pytest.mark.parametrize(("keys", "found"), [
    (("eval.eval_freq=4", "log.save_freq=3"), (4, 4)),  # 0, 4, 8, 10; 3, 6, 9, 10
    (("eval.eval_freq=5", "log.save_freq=5"), (3, 2)),
    (("eval.eval_freq=0", "log.save_freq=0"), (0, 1)),
])  # fmt: skip
def test_evaluations_and_checkpoints_are_counted(tmp_path: Path, keys: tuple[str, ...], found: tuple[int, int]) -> None:
    file = write_run(tmp_path)
    assert times(load_config(file, ["train.max_epochs=10", *keys])) == found
    assert times(load_config(file, ["train.max_epochs=null", *keys])) is None


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_it_leaves_the_runs_folder_as_it_is_and_nothing_beside_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = ("log.save_model_only=false", "model.resume_path=auto", "train.max_epochs=20", "train.unique_sample_num_per_epoch=6")
    config = load_config(write_run(tmp_path), [*keys, "log.save_freq=5", "train.kl_beta=0.1"])
    state = tmp_path / "save/run/checkpoints/epoch_40/state"
    state.mkdir(parents=True)
    (state / "progress.json").write_text("what a run has left, whole or not, is not its concern")
    before = files(tmp_path / "save")
    said, fits = rehearse(config, lambda: None)
    assert fits and files(tmp_path / "save") == before and [p.name for p in (tmp_path / "save").iterdir()] == ["run"]
    assert not [record for record in caplog.records if "cannot be written" in record.getMessage()]
    lines = said.splitlines()
    assert lines[0].startswith("test run: an epoch of 2 of 6 groups of 4 samples, 4 of 4 test rows, a checkpoint and its way back")
    assert any(re.fullmatch(r"the run: .+ for 20 epochs, 21 evaluations and 4 checkpoints, its start not counted", line) for line in lines)
    kept = re.search(r"a checkpoint: (\S+) MB of weights, (\S+) MB of training state", said)
    assert kept is not None and 0 < float(kept[1]) < float(kept[2])


@pytest.mark.parametrize(("owner", "name"), [
    (JpegCompressibility, "__call__"), pytest.param(Learner, "step", marks=pytest.mark.exhaustive),
])  # fmt: skip
def test_what_fails_in_a_phase_ends_it_as_it_ends_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    config = load_config(write_run(tmp_path))

    def fails(*given: Any, **named: Any) -> Any:
        raise UserError("no more")

    monkeypatch.setattr(owner, name, fails)
    with pytest.raises(UserError, match="no more"):
        rehearse(config, lambda: None)
    assert not (tmp_path / "save").exists()


@pytest.mark.slow
def test_the_command_does_it_with_two_processes(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "empty").mkdir()
    done = ff_train(tmp_path / "tiny.yaml", "--test-run", "--num_processes", "2", "--max_restarts", "1", cwd=tmp_path / "empty")
    assert done.returncode == 0, done.stderr
    assert "test run: an epoch of 2 of 2 groups of 4 samples" in done.stdout
    said = [line for line in done.stderr.splitlines() if line.startswith(("note: ", "WARNING "))]
    assert said and len(said) == len(set(said)), "once, by one of them"
    assert not (tmp_path / "save").exists() and not list((tmp_path / "empty").iterdir())
