"""On a GPU: evaluation is the stock pipeline's, fewer bits and idle parts learn as whole ones."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from flow_factory.checkpoints.model_files import save_model
from flow_factory.config import ModelConfig
from flow_factory.models.quantized import check_quantization
from flow_factory.utils.errors import UserError
from flow_factory.utils.offload import FLOAT8, to_device
from tests.gpu.device import DEVICE, REAL
from tests.memory.test_offload import learns_on_policy
from tests.models.cases import EACH, RARE
from tests.models.harness import LORA, drawn, same
from tests.models.harness import trained as tiny_case
from tests.models.test_stock import engine_over, loaded
from tests.tiny.run import tiny, trained

pytestmark = pytest.mark.gpu

QUANTIZERS = [kind for part in get_args(ModelConfig.model_fields["quantization"].annotation) for kind in get_args(part)]


@pytest.mark.parametrize("name", [name for name in EACH if name not in RARE])
def test_a_lora_is_evaluated_in_bf16_as_the_stock_pipeline_draws_with_it(name: str, tmp_path: Path) -> None:
    """To the bit, as on a CPU."""
    t, policy = tiny_case(name, "bf16", device=DEVICE, **LORA)
    save_model(tmp_path, policy, type(t.adapter.pipe))
    t.ask = engine_over(policy, "bf16", DEVICE)
    t.conds = [to_device(cond, DEVICE) for cond in t.conds]
    assert same(t.evaluate(), drawn(loaded(name, tmp_path, "bf16").to(DEVICE), t.case))


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_quantised_run_learns_on_policy(kind: str, tmp_path: Path) -> None:
    try:
        check_quantization(kind)
    except UserError as error:
        pytest.skip(str(error))
    learns_on_policy(tmp_path, f"model.quantization={kind}", "mixed_precision=bf16")


@pytest.mark.parametrize("kind", FLOAT8)
def test_a_run_whose_weights_are_stored_in_8_bits_learns_on_policy(kind: str, tmp_path: Path) -> None:
    learns_on_policy(tmp_path, f"model.layerwise_casting={kind}", "mixed_precision=bf16")


WAITING = {
    "plain": (),
    "aside": ("model.offload_idle=true", "train.offload_samples_to_cpu=true", "train.ema_device=cpu"),
    "blocks": ("model.offload_blocks=true", "model.offload_idle=true"),
}


def test_what_waits_in_main_memory_changes_no_weight(tmp_path: Path) -> None:
    """FSDP2 in one process, with its shards in main memory, is the last."""
    learned = {}
    for name, overrides in WAITING.items():
        run = tiny(tmp_path, *overrides, f"run_name={name}", "mixed_precision=bf16")
        for _ in range(2):
            assert run.trainer.epoch()["train/on_policy_error"] == 0
        learned[name] = {k: run.context.engine.whole(p) for k, p in run.context.policy.trained().items()}
    for name in ("aside", "blocks"):
        assert all(torch.equal(learned["plain"][k], p) for k, p in learned[name].items()), name


def test_samples_wait_pinned_and_idle_parts_leave_the_device(tmp_path: Path) -> None:
    run = tiny(tmp_path, *WAITING["aside"])
    vae = run.context.adapter.pipe.vae
    rollouts = run.trainer.collector(0)
    states = [x for r in rollouts for s in r.steps for x in (s.x, s.x1)]
    assert states and {x.device.type for x in states} == {"cpu"} and all(x.is_pinned() == REAL for x in states)
    assert {p.device.type for p in vae.parameters()} == {DEVICE}
    run.context.policy.offload_idle()
    assert {p.device.type for p in vae.parameters()} == {"cpu"}
    assert {p.device.type for p in trained(run).values()} == {DEVICE}
