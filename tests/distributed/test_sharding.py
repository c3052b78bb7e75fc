"""What FSDP2 and ZeRO-3 send: weights in the dtype in which they compute, once a rollout where they stay, and nothing to resume; who holds
what, within machines and over them.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.utils._python_dispatch import TorchDispatchMode

from flow_factory.checkpoints.model_files import collect
from flow_factory.runs.training_state import load
from flow_factory.training.run import Run
from flow_factory.utils.stock_dtypes import stays_precise
from tests.distributed.test_engines import COMMON, WAN, on
from tests.tiny.pipelines import saved
from tests.tiny.run import ROOT, forwards
from tests.tiny.several import FULL, LAST, assert_same_run, assert_same_weights, proof, several, state_of

pytestmark = pytest.mark.slow

HYBRID = f"config_file={ROOT}/examples/launch/fsdp_hybrid_shard.yaml"
FLAT = f"config_file={ROOT}/examples/launch/fsdp_full_shard.yaml"
BF16 = ("mixed_precision=bf16", "train.rollout_batch_size=2", "train.max_epochs=1", "eval.eval_freq=0")
ONE_EXPERT = (*WAN, *FULL, f"model.model_name_or_path={saved('wan22_a14b_t2v')}", "model.target_components=transformer")


class Gathered(TorchDispatchMode):
    """Adds up the bytes that this process has received by gathering.

    torch's CommDebugMode, which is such a mode, counts calls, and its list of modules loses its place where a module is called again.
    """

    received = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.c10d._allgather_base_.default:
            self.received += args[0].nbytes
        return func(*args, **(kwargs or {}))


def sizes(run: Run) -> dict[str, int]:
    """Bytes of the weights gathered in the dtypes in which they compute, shards padded to be of equal size: of blocks, and of the rest."""
    (model,), shape = run.context.policy.models.values(), run.context.engine.shape
    out = {"blocks": 0, "rest": 0}
    for name, p in model.named_parameters():
        rows = -(-shape(p)[0] // 2) * 2
        width = 4 if stays_precise(model, name) else 2
        out["blocks" if name.startswith("blocks.") else "rest"] += rows * shape(p)[1:].numel() * width
    return out


def sent(run: Run) -> dict[str, Any]:
    """What a rollout gathers, in how many forwards; then, after training, what resuming gathers, and what saving copies."""
    engine, seen = run.context.engine, {}
    calls = len(run.trainer.collector.draws())
    with forwards(WanTransformer3DModel) as made, Gathered() as rolled:
        run.trainer.collector(0)
    seen |= {"rolled": rolled.received, "forwards": len(made), "calls": calls, **sizes(run), "keeps": engine.settings.keep}
    seen |= {"trained_in": sorted({str(p.dtype) for p in run.context.policy.trained().values()})}
    run()
    main = run.context.accelerator.is_main_process
    kept = collect(engine.policy, engine.whole, keep=main)
    seen["copied"] = sum(t.numel() for tensors in kept.values() for t in tensors.values())
    with Gathered() as resumed:
        load(run.checkpoint(), run.context.store, engine, run.context.schedule)
    return seen | {"resumed": resumed.received}


def test_weights_are_gathered_in_16_bits_and_once_a_rollout_where_they_stay(tmp_path: Path) -> None:
    wan = (*COMMON, *WAN, *FULL, *BF16, f"model.model_name_or_path={saved('wan21_t2v')}")
    runs = {
        "kept": [*wan, on("fsdp2")],
        "given_back": [*wan, on("fsdp2"), "model.reshard_after_forward=true"],
        "zero3": [*wan, on("zero3")],
    }
    for name, said in several(tmp_path, 2, runs, sent).items():
        for rank, seen in enumerate(said):
            assert seen["trained_in"] == ["torch.float32"] and seen["forwards"] == 6 * seen["calls"] > 6
            assert seen["keeps"] == (name == "kept")
            if name == "kept":
                assert seen["rolled"] == seen["rest"] + seen["blocks"]
            if name == "given_back":
                assert seen["rolled"] == seen["calls"] * seen["rest"] + seen["forwards"] * seen["blocks"]
            assert (seen["copied"] > 0) == (rank == 0), "the process that writes copies, and no other"
            assert seen["resumed"] == 0, "each process reads its own rows"


def as_two_machines(rank: int) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = "2"


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """(folder of the runs of one process, folder of those of four on two machines, what the latter say)"""
    one, four = (tmp_path_factory.mktemp(name) for name in ("one", "four"))
    keys = {"full": [*COMMON, *FULL], "lora": [*COMMON], "expert": [*COMMON, *ONE_EXPERT]}
    said = several(four, 4, {
        "full": [*keys["full"], on("fsdp2")],
        "lora": [*keys["lora"], HYBRID, "model.reshard_after_forward=true"],
        "expert": [*keys["expert"], FLAT],
        "full_on_one_mesh": [*keys["full"], FLAT, f"model.resume_path={four}/save/full/checkpoints/epoch_1"],
        "full_again": [*keys["full"], HYBRID, f"model.resume_path={four}/save/full/checkpoints/epoch_1"],
    }, proof, as_two_machines)  # fmt: skip
    several(one, 1, {
        **keys, "full_alone": [*keys["full"], f"model.resume_path={four}/save/full/checkpoints/epoch_1"],
    })  # fmt: skip
    return one / "save", four / "save", said


@pytest.mark.parametrize("kind", ["full", "lora", "expert"])
def test_four_processes_on_two_machines_do_what_one_process_does(four: tuple[Path, Path, Any], kind: str) -> None:
    assert_same_run(four[1] / kind, four[0] / kind)


def test_each_machine_has_all_weights_unless_they_are_shared_out_over_all(four: tuple[Path, Path, Any]) -> None:
    """Frozen experts are shared out as well."""
    for kind, sharers in {"full": 2, "lora": 2, "expert": 4, "full_on_one_mesh": 4, "full_again": 2}.items():
        for rank in four[2][kind]:
            assert rank["held"] / rank["whole"] == pytest.approx(1 / sharers, rel=0.1), kind
            for part in ("frozen", "trained", "copies", "optimiser"):
                held = sum(r["bytes"][part] for r in four[2][kind]) / 4
                assert rank["estimate"][part] == pytest.approx(held, rel=0.03), (kind, part)


def test_a_state_goes_on_on_another_mesh(four: tuple[Path, Path, Any]) -> None:
    one, several_machines, _ = four
    unbroken, again = (state_of(several_machines / name, 2) for name in ("full", "full_again"))
    assert [k for k in unbroken if not torch.equal(unbroken[k], again[k])] == []
    assert_same_weights(several_machines / "full_on_one_mesh", several_machines / "full", LAST)
    assert_same_weights(one / "full_alone", several_machines / "full", LAST)
