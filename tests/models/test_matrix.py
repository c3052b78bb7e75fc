"""Every algorithm on every model: two epochs of a LoRA."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flow_factory.algorithms import ALGORITHMS
from flow_factory.config import TRAIN_CONFIGS
from flow_factory.models import MODELS
from flow_factory.models.loading import sketch_adapter
from flow_factory.runs.fitting import checkpoint_of
from flow_factory.training.encoding import call_of_training
from tests.conftest import cells, fresh_policy
from tests.models.breadth import NAMED
from tests.models.cases import CASES, EACH
from tests.models.harness import LORA, Tiny, counted, lora, small
from tests.models.matrix import KEYS, SINGLE, STUDENTS, config_of, experts, trainer_of

VELOCITIES = {
    "grpo": 8, "grpo-guard": 4, "dppo": 4, "nft": 12, "awm": 4 + 2 + 2, "dpo": 8, "sft": 8,
    "dgpo": 12 + 8, "crd": 12 + 8, "draft": 16, "diffusion-opd": 16,
}  # fmt: skip
"""Of an epoch of two micro-batches of two points, each half a group and an update of its own (DPO: one pair of four): the policy's, those
of kept weights, and those of the survey; AWM has the latter two only after the first update. DRaFT has four points and one
update; distillation has four points, each of the policy and of its teacher."""


def encodes(name: str) -> bool:
    return MODELS[CASES[name].model_type].encodes_media is None


UNTAUGHT = {("hunyuan_video15", name) for name in STUDENTS}
TAUGHT = [(name, algorithm) for name in EACH for algorithm in STUDENTS if (name, algorithm) not in UNTAUGHT]
NONE = {("hunyuan_video15", "draft"), *((name, "sft") for name in EACH if not encodes(name))}
"""Cells that are refused."""
CELLS = [(name, algorithm) for name in EACH for algorithm in SINGLE if (name, algorithm) not in NONE]
DIAGONAL = {
    (name, algorithm)
    for j, name in enumerate(EACH)
    for k, algorithm in enumerate(key for key in SINGLE if (name, key) in CELLS)
    if (k - j) % sum((name, key) in CELLS for key in SINGLE) == 0
}
"""Every model with one algorithm, and every algorithm with three models or four; the other cells take turns."""


@pytest.fixture
def untrained(name: str) -> Iterator[dict[str, Tensor]]:
    """The weights of the case's one LoRA, which it has again afterwards."""
    _, policy = lora(name)
    start = {k: p.detach().clone() for k, p in policy.trained().items()}
    yield start
    with torch.no_grad():
        for k, p in policy.trained().items():
            p.copy_(start[k])


@pytest.mark.slow
@cells("name", "algorithm", CELLS, {*CELLS} - DIAGONAL)
def test_two_epochs_of_an_algorithm_move_a_model(name: str, algorithm: str, tmp_path: Path, untrained: dict[str, Tensor]) -> None:
    """The second epoch's velocities are counted: none too many, and those of forward-process algorithms without guidance."""
    t, policy = lora(name)
    trainer = trainer_of(name, algorithm, tmp_path)
    with small(t.adapter.pipe):
        first = trainer.epoch()
        rollouts = trainer.collector(1)
        trainer.judge(rollouts)
        with counted(t.transformers) as seen:
            trainer.learner.learn(trainer.groups(rollouts))
    metrics = trainer.context.meter.means()
    assert all(map(torch.isfinite, map(torch.tensor, (first | metrics).values())))
    assert first["train/first_update_effect"] > 0
    if algorithm in ("grpo", "dppo"):
        assert first["train/on_policy_error"] == metrics["train/on_policy_error"] == 0
    case = CASES[name]
    free = not trainer.context.config.train.stochastic
    distils = algorithm == "diffusion-opd"
    guided, left_out = not free or distils, 4 * case.first * distils  # of a video that is given, the first steps are not drawn
    reference = 4 if algorithm == "crd" and free and case.forwards == (1, 1) else 0  # its negative prompts
    assert len(seen) == (VELOCITIES[algorithm] - left_out) * (len(case.forwards) if guided else 1) + reference
    still = [k for k, p in policy.trained().items() if torch.equal(p, untrained[k])]
    assert len(still) <= (len(untrained) // 4 if t.adapter.find_unused else 0), still[:3]


@pytest.mark.slow
@cells("name", "algorithm", TAUGHT, {*TAUGHT} - {("flux1", "tdm")})
def test_two_epochs_of_every_network_of_a_student(name: str, algorithm: str, tmp_path: Path) -> None:
    """Of a base that is guided, where it can be; rows are encoded as a run encodes them."""
    without = {"train.real_guidance_scale": None, "train.tdm_weight": 0, "train.surrogate_guidance_scale": 1}
    guided = {"train.real_guidance_scale": 2.0} if CASES[name].guided else without if algorithm == "tdm-r1" else {}
    config = config_of(name, algorithm, tmp_path, **guided)
    sketch, method = sketch_adapter(*checkpoint_of(config)), ALGORITHMS[algorithm](config.train, config.scheduler)
    t = Tiny(name, **call_of_training(config, sketch, method))
    model = LORA | {"target_components": tuple(experts(name))}
    policy = fresh_policy(t.adapter, roles=TRAIN_CONFIGS[algorithm].networks, **model)
    trainer = trainer_of(name, algorithm, tmp_path, (t, policy), **guided)
    before = {k: p.detach().clone() for role in policy.roles for k, p in policy.trained(role).items()}
    with small(t.adapter.pipe):
        told = [trainer.epoch() for _ in range(2)]
    assert all(map(torch.isfinite, map(torch.tensor, (told[0] | told[1]).values())))
    for role in policy.roles:
        still = [k for k, p in policy.trained(role).items() if torch.equal(p, before[k])]
        assert len(still) <= (len(before) // 4 if t.adapter.find_unused else 0), (role, still[:3])


def test_the_matrix_has_every_model_type_and_every_algorithm() -> None:
    assert {CASES[name].model_type for name in EACH} == {*MODELS} - {*NAMED.values()}
    assert set(KEYS) == {*SINGLE, *STUDENTS} and set(VELOCITIES) == set(SINGLE)
    assert {name for name, _ in DIAGONAL} == set(EACH) and {algorithm for _, algorithm in DIAGONAL} == set(SINGLE)
