"""Processes that share weights or gradients out must do the same things in the same order, though each has its own to do: noise levels of
another expert, pictures of another size, parts of more groups. On every engine they learn what one process does.
"""

from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import cells, chosen
from tests.data.test_given import COLOURS, OFFLINE
from tests.distributed.test_engines import WAN, on
from tests.distributed.test_same_run import FOUR
from tests.tiny.pipelines import saved
from tests.tiny.run import TRAIN, read_state, write_rows, write_run
from tests.tiny.several import SMOOTH, assert_same_run, several

pytestmark = pytest.mark.slow

BOTH = (*WAN, 'model.target_components=["transformer", "transformer_2"]')
MODEL = {"grpo": "wan22_a14b_t2v", "nft": "wan22_a14b_t2v", "sizes": "flux1_kontext"}
KINDS = {
    "grpo": (*BOTH, "train.kl_beta=0.1", "scheduler.step_selection=window"),
    "nft": (
        *BOTH, "train.trainer_type=nft", "train.kl_beta=0.1", "train.time_sampling_strategy=uniform",
        "train.enable_gradient_checkpointing=true",
    ),
    "parts": ("train.trainer_type=dgpo", "train.num_train_timesteps=2", "train.group_size=6", "train.gradient_step_per_epoch=3"),
    "sizes": (
        *OFFLINE, "model.model_type=flux1-kontext", "data.dataset_dir=pairs", "train.condition_image_size=32", "train.learning_rate=1e-3",
        "eval.condition_image_size=32",
    ),
}  # fmt: skip
"""grpo: each group has a step of its own, so that some updates are of one expert alone. parts: an update takes four micro-batches of groups
of three, so that one process has parts of two groups and the other of one."""
CASES = [
    ("grpo", "fsdp2"), ("grpo", "zero2"), ("nft", "ddp"), ("nft", "fsdp2"), ("nft", "zero2"), ("nft", "zero3_offload"), ("parts", "fsdp2"),
    ("sizes", "fsdp2"),
]  # fmt: skip
MORE = {("nft", "ddp"), ("nft", "zero2")}
SIZES = ((32, 32), (48, 16), (16, 48), (32, 24), (24, 32), (40, 24))


def write_edits(folder: Path) -> None:
    """Pairs of edits, each of a picture of another size."""
    (folder / "images").mkdir(parents=True)
    for k, size in enumerate(SIZES):
        for name, colour in COLOURS.items():
            Image.new("RGB", size, colour).save(folder / "images" / f"{name}{k}.png")
    rows = [{"prompt": p, "image": f"blue{k}.png", "chosen": f"red{k}.png", "rejected": f"blue{k}.png"} for k, p in enumerate(TRAIN)]
    write_rows(folder / "train.jsonl", rows)


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the runs of one process and of two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    models = {kind: [f"model.model_name_or_path={saved(name)}"] for kind, name in MODEL.items()}
    keys = {kind: [*SMOOTH, *FOUR, *models.get(kind, ()), *more] for kind, more in KINDS.items()}
    for folder in (one, two):
        write_run(folder)
        write_edits(folder / "pairs")
    cases = sorted(chosen(request, "kind", "engine"))
    several(one, 1, {kind: keys[kind] for kind in {kind for kind, _ in cases}})
    several(two, 2, {f"{kind}_{engine}": [*keys[kind], on(engine)] for kind, engine in cases})
    return one / "save", two / "save"


@cells("kind", "engine", CASES, MORE)
def test_processes_that_have_different_things_to_do_learn_what_one_does(runs: tuple[Path, Path], kind: str, engine: str) -> None:
    """Both experts, where a run trains two."""
    one, two = runs
    assert_same_run(two / f"{kind}_{engine}", one / kind, exact=kind != "sizes")  # which has no rewards
    state = read_state(one / kind / "checkpoints" / "epoch_2") if kind in ("grpo", "nft") else {}
    for expert in ("transformer", "transformer_2") if state else ():
        assert any(bool(v.any()) for k, v in state.items() if f"exp_avg/{expert}." in k), expert
