"""Every engine does what one process does, on weights that really are shared out, and goes on where any other stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny.run import ROOT, logged, read_state
from tests.tiny.several import assert_near, assert_same_run, assert_same_start, several

pytestmark = pytest.mark.slow

COMMON = (
    "train.unique_sample_num_per_epoch=4", "train.adam_epsilon=1e-3", "train.kl_beta=0.1", "log.save_freq=1", "log.save_model_only=false",
    "eval.eval_freq=2",
)  # fmt: skip
KINDS = {"lora": (), "full": ("model.finetune_type=full", "model.target_modules=all", "model.master_weight_dtype=fp32")}
ENGINES = {
    "ddp": "multi_gpu", "fsdp2": "fsdp2", "fsdp2_keep": "fsdp_grad_op_shard", "fsdp2_offload": "fsdp2_offload",
    "zero1": "deepspeed_zero1", "zero2": "deepspeed_zero2", "zero3": "deepspeed_zero3", "zero2_offload": "deepspeed_zero2_offload",
    "zero3_offload": "deepspeed_zero3_offload",
}  # fmt: skip
NAMES = {"ddp": "DDP", "fsdp": "FSDP2", "zero1": "DeepSpeed ZeRO-1", "zero2": "DeepSpeed ZeRO-2", "zero3": "DeepSpeed ZeRO-3"}
RUN = {"lora": tuple(ENGINES), "full": ("ddp", "fsdp2", "zero2", "zero3")}
RESUMED = {"lora": ("ddp", "fsdp2", "zero1", "zero2", "zero3"), "full": ("fsdp2", "zero2", "zero3")}
FROM = {"lora": {"ddp": "zero3", "fsdp2": "zero2", "zero3": "ddp"}, "full": {"ddp": "zero3", "zero3": "fsdp2"}}
"""Another engine's checkpoint, for some to go on from."""


def on(engine: str) -> str:
    return f"config_file={ROOT}/examples/launch/{ENGINES[engine]}.yaml"


@pytest.fixture(scope="module", params=KINDS)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """(folder of the run of one process, folder of those of two, what the latter say of their engines)."""
    one, two = (tmp_path_factory.mktemp(f"{name}_{request.param}") for name in ("one", "two"))
    keys = [*COMMON, *KINDS[request.param]]
    todo = {e: [*keys, on(e)] for e in RUN[request.param]}
    sources = {f"{e}_resumed": (e, e) for e in RESUMED[request.param]}
    sources |= {f"{e}_from_other": (e, other) for e, other in FROM[request.param].items()}
    for name, (engine, source) in sources.items():
        todo[name] = [*keys, on(engine), f"model.resume_path={two}/save/{source}/checkpoints/epoch_1"]
    said = several(two, 2, todo)
    several(one, 1, {"one": keys, "from_two": [*keys, f"model.resume_path={two}/save/zero3/checkpoints/epoch_1"]})
    return one / "save", two / "save", said


def end(run: Path) -> dict[str, Tensor]:
    return read_state(run / "checkpoints" / "epoch_2")


def test_each_engine_does_what_one_process_does(runs: tuple[Path, Path, Any]) -> None:
    one, two, _ = runs
    for engine in ENGINES.keys() & {folder.name for folder in two.iterdir()}:
        assert_same_run(two / engine, one / "one")


def test_each_engine_is_the_one_it_says(runs: tuple[Path, Path, Any]) -> None:
    """Counted on each process: the weights and the optimiser's state that it holds."""
    for engine, said in runs[2].items():
        kind = engine.split("_")[0]
        for rank in said:
            assert rank["engine"] == NAMES["fsdp" if kind == "fsdp2" else kind]
            assert rank["wrapped"] == {"ddp": "DistributedDataParallel", "fsdp2": "FSDPPolicy"}.get(kind, "DeepSpeedEngine")
        shares = [[rank[k] / rank[of] for rank in said] for k, of in (("held", "whole"), ("moments", "trained"))]
        weights, moments = shares
        assert sum(weights) == pytest.approx(1 if kind in ("fsdp2", "zero3") else 2, rel=0.01)
        assert max(weights) < 0.6 or kind not in ("fsdp2", "zero3")
        assert sum(moments) == pytest.approx(4 if kind == "ddp" else 2, rel=0.01), "two moments, on each process or shared out"
        assert max(moments) < 1.2 or kind == "ddp"


def test_each_process_holds_what_the_estimate_says(runs: tuple[Path, Path, Any]) -> None:
    """DeepSpeed's own weights in float32 are not counted here, and it pads its shards."""
    for engine, said in runs[2].items():
        for part in ("frozen", "trained", "copies") + (() if engine.startswith("zero") else ("optimiser",)):
            held = sum(rank["bytes"][part] for rank in said) / len(said)
            assert said[0]["estimate"][part] == pytest.approx(held, rel=0.02), (engine, part)


def test_a_resumed_run_goes_on_to_the_bit(runs: tuple[Path, Path, Any]) -> None:
    resumed = [name for name in runs[2] if name.endswith("_resumed")]
    for name in resumed:
        here, unbroken = end(runs[1] / name), end(runs[1] / name.removesuffix("_resumed"))
        assert here.keys() == unbroken.keys()
        assert [k for k in unbroken if not torch.equal(here[k], unbroken[k])] == [], name
    assert len(resumed) > 2


def test_a_run_goes_on_on_another_engine_and_in_another_number_of_processes(runs: tuple[Path, Path, Any]) -> None:
    one, two, said = runs
    others = [name for name in said if name.endswith("_from_other")]
    for name in others:
        assert_near(end(two / name), end(one / "one"))
    assert len(others) > 1
    assert_near(end(one / "from_two"), end(one / "one"))
    assert [line["step"] for line in logged(one / "from_two")] == [2, 2]


MIXED = ("ddp", "fsdp2", "zero2", "zero3")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the runs as the examples for GPUs have them, of one process and of two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one_bf16", "two_bf16"))
    saving = ("train.enable_gradient_checkpointing=true", "train.offload_samples_to_cpu=true", "model.offload_idle=true")
    keys = [*COMMON, *KINDS["full"], *saving, "mixed_precision=bf16", "train.max_epochs=1", "eval.eval_freq=0"]
    several(one, 1, {"one": keys})
    several(two, 2, {engine: [*keys, on(engine)] for engine in MIXED})
    return one / "save" / "one", two / "save"


@pytest.mark.parametrize("engine", MIXED)
def test_mixed_precision_draws_the_same_pictures_and_moves_the_weights_alike(mixed: tuple[Path, Path], engine: str) -> None:
    """What is trained stays in float32; sums of gradients of 16 bits in another order move it a little otherwise."""
    one, two = mixed[0], mixed[1] / engine
    assert_same_start(logged(one), logged(two))
    assert logged(two)[0]["train/on_policy_error"] == 0
    whole, theirs = (read_state(run / "checkpoints" / "epoch_1") for run in (one, two))
    moments = [k for k in whole if "/exp_avg/" in k]
    assert len(moments) > 10 and all(whole[k].dtype == theirs[k].dtype == torch.float32 for k in moments)
    here, there = (torch.cat([state[k].flatten() for k in moments]) for state in (theirs, whole))
    assert there.norm() > 0 and (here - there).norm() / there.norm() < 0.01
