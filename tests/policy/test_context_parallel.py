"""A team of processes does together what one does: the same velocities and gradients, the same runs, and clear words where it cannot."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from flow_factory.config import ConfigError, RunConfig, load_config, plan_of
from flow_factory.models.loading import sketch_adapter
from flow_factory.policy.attention import using_backend
from flow_factory.policy.context_parallel import refuse_uneven, split_sequences
from flow_factory.runs.fitting import checkpoint_of, fitted
from flow_factory.utils.errors import UserError
from tests.conftest import cells, chosen
from tests.distributed.test_same_run import FOUR, NFT, ONE
from tests.models.cases import CASES
from tests.models.harness import Tiny
from tests.tiny.pipelines import saved
from tests.tiny.run import ROOT, TEST, logged, write_rows, write_run
from tests.tiny.several import FULL, SMOOTH, assert_same_run, several
from tests.tiny.side_by_side import side_by_side
from tests.tiny.teams import SPLIT, compare

WAN = ("train.resolution=16", "train.num_frames=5", "train.guidance_scale=4.0", "eval.resolution=16", "eval.num_frames=5")
RUNS = {
    "flux": (*FOUR, "train.kl_beta=0.1"),
    "flux_full": (*FOUR, *FULL, "train.enable_gradient_checkpointing=true"),
    "flux_shared": (
        *ONE,
        "train.trainer_type=dgpo",
        "train.num_train_timesteps=2",
        "rewards.reward_model=tests.tiny.rewards.Outshines",
        "eval.group_size=4",
    ),
    "wan": (*FOUR, *WAN, "train.kl_beta=0.1"),
    "wan_full": (*FOUR, *WAN, *FULL),
    "wan_nft": (*FOUR, *WAN, *NFT),
}
"""With two teams, `flux_shared` has a group that both share, which is scored and compared as a whole; it evaluates groups, too."""
TEAMS = [*((2, name) for name in RUNS), (4, "flux_shared"), (4, "wan_full")]
MORE = {(2, "flux_full"), (2, "wan_nft"), (4, "wan_full")}


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of all runs by the number of processes: one, a team of two, two teams of two."""
    folders, cases = {}, chosen(request, "processes", "name")
    wan = (f"model.model_name_or_path={saved('wan21_t2v')}", "model.model_type=wan2_t2v")
    for processes, team in ((1, 1), (2, 2), (4, 2)):
        folder = tmp_path_factory.mktemp(f"of_{processes}_")
        write_run(folder)
        write_rows(folder / "data" / "test.jsonl", [{"prompt": p} for p in TEST[:3]])
        todo = {k: keys for k, keys in RUNS.items() if any(k == name and processes in (1, n) for n, name in cases)}
        many = {k: [*SMOOTH, *keys, *(wan if "wan" in k else ()), f"model.context_parallel={team}"] for k, keys in todo.items()}
        several(folder, processes, many)
        folders[processes] = folder / "save"
    return folders


@pytest.mark.slow
@pytest.mark.exhaustive
@cells("processes", "name", TEAMS, MORE)
def test_teams_do_what_one_process_does(runs: dict[int, Path], name: str, processes: int) -> None:
    assert_same_run(runs[processes] / name, runs[1] / name, exact=False)
    errors = [line["train/on_policy_error"] for line in logged(runs[processes] / name) if "train/on_policy_error" in line]
    assert errors == ([0.0, 0.0] if name in ("flux", "flux_full", "wan", "wan_full") else []), "training sees what sampling saw"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process of a team of two found, see `tests.tiny.teams`."""
    folder = tmp_path_factory.mktemp("families")
    side_by_side(2, folder, compare)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SPLIT)
def test_a_team_has_the_velocity_and_the_gradient_of_one_process(compared: list[dict[str, Any]], name: str) -> None:
    for rank in compared:
        said = rank[name]
        assert said["exact"] == [True] * 3, "a replay has the rollout's log-probability to the bit"
        assert max(step["velocity"] for step in said["off"]) < 1e-5
        assert max(step["gradient"] for step in said["off"]) < 1e-3
        assert min(said["parts"]) > 0.1, "a process alone has a part of the gradient"


# -- what cannot be split -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["num_processes=3"], ["context_parallel: 2 must divide num_processes=3", "write 1, or num_processes: 4"]),
        (["num_processes=1"], ["context_parallel: 2 must divide num_processes=1", "write 1, or num_processes: 2"]),
        (["num_processes=2", f"config_file={ROOT}/examples/launch/fsdp2.yaml"], ["does not work with FSDP2", "config_file: null"]),
        (["num_processes=6"], ["do not divide over num_processes=6 / model.context_parallel=2; write 3"]),
    ],
)  # fmt: skip
def test_a_team_that_does_not_fit_is_an_error(tmp_path: Path, overrides: list[str], said: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(write_run(tmp_path), ["model.context_parallel=2", *overrides])
    assert all(words in str(error.value) for words in said), error.value


def test_teams_take_rows_as_processes_would(tmp_path: Path) -> None:
    """Four rows for two teams are two each, where four processes alone would have one each."""
    config = load_config(write_run(tmp_path), [*FOUR, "num_processes=4", "model.context_parallel=2"])
    deal = plan_of(config).rolled
    assert deal.of(0) == deal.of(1) != deal.of(2) == deal.of(3)
    assert sorted(deal.of(0) + deal.of(2)) == [(g, k) for g in range(4) for k in range(2)]
    assert [deal.leads(p) for p in range(4)] == [True, False, True, False]
    assert ("rows an epoch", "4 = 2 x 2 context-parallel groups of 2 processes") in plan_of(config).describe()


def sketched(config: RunConfig) -> RunConfig:
    return fitted(config, sketch_adapter(*checkpoint_of(config)))


def test_a_family_that_cannot_be_split_names_those_that_can(tmp_path: Path) -> None:
    case = CASES["sd3-5"]
    model = [f"model.model_name_or_path={saved(case.checkpoint)}", f"model.model_type={case.model_type}", "model.context_parallel=2"]
    with pytest.raises(UserError, match=r"SD3.* cannot be split; write 1. Those of flux1, .*wan2_t2v.* can"):
        sketched(load_config(write_run(tmp_path), [*model, "num_processes=2"]))


def test_heads_that_do_not_divide_are_an_error(tmp_path: Path) -> None:
    config = load_config(write_run(tmp_path), ["model.context_parallel=4", "num_processes=4", *FOUR])
    with pytest.raises(UserError, match="4 does not divide the 2 attention heads of transformer; write one of 1, 2"):
        sketched(config)


@pytest.mark.parametrize(
    ("name", "call", "said"),
    [
        ("flux1", {"max_sequence_length": 15}, "2 does not divide encoder_hidden_states's 15 tokens; change max_sequence_length"),
        ("wan21-t2v", {"num_frames": 9}, "2 does not divide hidden_states's 3 tokens; change height, width, num_frames"),
    ],
)
def test_a_length_that_does_not_divide_is_an_error(name: str, call: dict[str, Any], said: str) -> None:
    t = Tiny(name, **call)
    refuse_uneven(t.transformers[0], 2)
    with pytest.raises(UserError, match=said):
        t.roll()


def test_an_attention_backend_that_cannot_split_names_those_that_can() -> None:
    t = Tiny("wan21-t2v")
    if dist.is_initialized():
        dist.destroy_process_group()  # of a run of another test in this process
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        said = r"model.context_parallel: .*_native_math.* does not support .*'native'"
        with using_backend(t.transformers[0], "_native_math"), pytest.raises(UserError, match=said):
            split_sequences(t.adapter, 2, torch.device("cpu"))
    finally:
        dist.destroy_process_group()
