"""What losses compare with: the checkpoint's own weights, or those that the run starts from; alike for a LoRA and for all weights."""

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.training.run import Run
from flow_factory.utils.errors import UserError
from tests.tiny.run import logged, tiny, trained

COMMON = ("eval.eval_freq=0", "train.ema_decay=0", "train.gradient_step_per_epoch=1", "train.learning_rate=1e-2")
KINDS = {"lora": (), "full": ("model.finetune_type=full", "model.target_modules=attn.to_q")}
ALGORITHMS: dict[str, tuple[str, str]] = {
    "grpo": ("train.kl_beta=0.1", "train/kl_div"),
    "nft": ("train.kl_beta=0.1", "train/kl_div"),
    "dpo": ("train.beta=10", "train/margin"),
}


@lru_cache
def earlier(kind: str) -> TemporaryDirectory:
    """A run that has trained the weights which later ones start from."""
    folder = TemporaryDirectory(prefix=f"earlier_{kind}_")
    tiny(Path(folder.name), *COMMON, *KINDS[kind], "train.learning_rate=0.1", "train.max_epochs=1")()
    return folder


def later(kind: str, name: str, reference: str, *overrides: str, algorithm: str = "grpo") -> Run:
    folder = Path(earlier(kind).name)
    keys = (f"model.resume_path={folder}/save/run", f"train.reference={reference}", f"run_name={name}", ALGORITHMS[algorithm][0])
    return tiny(folder, *COMMON, *KINDS[kind], f"train.trainer_type={algorithm}", *keys, *overrides)


@pytest.mark.parametrize(("algorithm", "kind", "reference"), [
    ("grpo", "lora", "base"), ("grpo", "lora", "start"), ("grpo", "full", "base"), ("grpo", "full", "start"), ("nft", "lora", "start"),
    ("dpo", "lora", "start"), ("dpo", "full", "base"),
])  # fmt: skip
def test_before_any_update_the_policy_is_the_reference_of_start_alone(algorithm: str, kind: str, reference: str) -> None:
    distance = later(kind, f"{algorithm}_{reference}", reference, algorithm=algorithm).trainer.epoch()[ALGORITHMS[algorithm][1]]
    assert (distance == 0) == (reference == "start")


@pytest.mark.parametrize(("kind", "reference", "engine"), [
    ("lora", "base", ""), ("lora", "start", ""), ("full", "base", ""), ("full", "start", ""), ("full", "base", "model.offload_blocks=true"),
])  # fmt: skip
def test_the_reference_is_the_weights_that_it_says(kind: str, reference: str, engine: str) -> None:
    """A LoRA's base is the model without it, and costs no copy."""
    name = f"weights_{reference}_{len(engine)}"
    store = later(kind, name, reference, *filter(None, [engine])).context.store
    untrained = tiny(Path(earlier(kind).name), *COMMON, *KINDS[kind], f"run_name=untrained_{name}").context.policy.trained()
    if kind == "lora" and reference == "base":
        assert "ref" not in store.copies
        return
    wanted = store.live if reference == "start" else list(untrained.values())
    assert all(torch.equal(a, b) for a, b in zip(store.copies["ref"], wanted, strict=True))
    assert not all(torch.equal(a, b.detach()) for a, b in zip(store.live, untrained.values(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "reference"), [("lora", "start"), ("full", "base")])
def test_a_run_that_goes_on_keeps_its_reference(kind: str, reference: str) -> None:
    keys: Any = ("train.max_epochs=2", "log.save_freq=1", "log.save_model_only=false")
    whole = later(kind, f"whole_{reference}", reference, *keys)
    whole()
    cut = tiny(
        Path(earlier(kind).name), *COMMON, *KINDS[kind], f"train.reference={reference}", ALGORITHMS["grpo"][0], *keys,
        f"run_name=cut_{reference}", f"model.resume_path={whole.folder}/checkpoints/epoch_1",
    )  # fmt: skip
    cut()
    there, here = trained(whole), trained(cut)
    assert all(torch.equal(there[k], here[k]) for k in there)
    assert logged(cut.folder)[-1]["train/kl_div"] == logged(whole.folder)[-1]["train/kl_div"] > 0
    other = "start" if reference == "base" else "base"
    with pytest.raises((CheckpointError, UserError), match="reference"):
        tiny(
            Path(earlier(kind).name), *COMMON, *KINDS[kind], f"train.reference={other}", ALGORITHMS["grpo"][0], *keys,
            f"run_name=other_{reference}", f"model.resume_path={whole.folder}/checkpoints/epoch_1",
        )  # fmt: skip
