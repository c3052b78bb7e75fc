"""On-policy distillation: values and gradients against the vectors, its properties, what it asks for and of whom."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from flow_factory.algorithms.losses.distillation import distillation_loss
from flow_factory.algorithms.opd import DiffusionOPD
from flow_factory.config import OPDConfig, SchedulerConfig
from flow_factory.core.dynamics import per_sample
from flow_factory.types import Point, Row, Step
from tests.points import rollout
from tests.vectors import close, golden, gradient, normals

KERNELS = {"ode": "ODE", "flow": "Flow-SDE", "dance": "Dance-SDE", "cps": "CPS"}
CASES = [("ode", "v"), ("ode", "xt"), ("ode", "x0"), ("flow", "xt"), ("dance", "xt"), ("cps", "xt")]
TWO = [{"path": "a/ocr", "applicable_datasets": ["words"], "guidance_scale": 4.5}, {"path": "b/shapes", "applicable_datasets": ["shapes"]}]


def made(
    dynamics: str = "ODE", teachers: Any = ({"path": "a/only"},), scheduler: dict[str, Any] | None = None, **train: Any
) -> DiffusionOPD:
    return DiffusionOPD(OPDConfig(teachers=teachers, **train), SchedulerConfig(dynamics_type=dynamics, **(scheduler or {})))  # type: ignore[arg-type]


def at(algorithm: DiffusionOPD, k: int, dataset: str = "") -> tuple[dict[str, Tensor], Point, Tensor]:
    """The file, the algorithm's own point at the file's k-th step, and the student's velocity there (leaf)."""
    g = golden("23_opd")
    i, v = int(g["steps"][k]), g["v_student"][k].clone().requires_grad_()
    s, s1 = g["sigmas"][i], g["sigmas"][i + 1]
    step = Step(i, 1000 * s, s, s1, g["sigmas"][1], g["x"][k], g["x"][k], torch.full((4,), torch.nan), torch.float64)
    batch = rollout(torch.zeros(4), steps=[step])
    batch.row = Row(0, "a", dataset=dataset)
    (point,) = algorithm.points(batch)
    point.frozen = dict.fromkeys(algorithm.weights, g["v_teacher"][k])
    return g, point, v


def loss_at(algorithm: DiffusionOPD, point: Point, v: Tensor) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        return algorithm.loss(point, lambda p, weights="policy", guidance=None: v if weights == "policy" else p.frozen[weights])[0]


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(("tag", "target"), CASES)
def test_losses_and_gradients_are_the_vectors(tag: str, target: str, normalised: bool) -> None:
    """All targets by the ODE, and the next state of three kernels over its variance; by the algorithm, which has the factors."""
    eta = float(golden("23_opd")[f"{tag}_eta"]) if tag != "ode" else 0.7
    algorithm = made(KERNELS[tag], scheduler={"noise_level": eta}, loss_target=target, self_normalize=normalised)
    for k in range(3):
        g, point, v = at(algorithm, k)
        name = f"{tag}_{target}{'_norm' * normalised}"
        assert point.step is not None
        factor, std = algorithm._compared(point.step)
        close(distillation_loss(v, g["v_teacher"][k], factor, std, normalised), g[f"{name}_per_sample"][k])
        loss = loss_at(algorithm, point, v)
        close(loss, g[f"{name}_loss"][k])
        close(gradient(loss, v), g[f"{name}_grad"][k])


def test_by_the_ode_the_targets_are_one_loss_in_other_weights() -> None:
    for k in range(3):
        g, point, v = at(made(loss_target="v"), k)
        assert point.step is not None
        of = {target: loss_at(made(loss_target=target), point, v) for target in ("v", "xt", "x0")}
        close(of["xt"], ((point.step.s1 - point.s) ** 2 * of["v"]).detach())
        close(of["x0"], (point.s**2 * of["v"]).detach())


def test_a_student_that_is_its_teacher_is_not_pulled_and_normalised_losses_are_linear() -> None:
    v, teacher, factor = normals(4, 6).requires_grad_(), normals(4, 6, seed=1), torch.tensor(-0.3, dtype=torch.float64)
    for normalised in (False, True):
        loss = distillation_loss(v, v.detach(), factor, None, normalised).sum()
        assert loss == 0 and not gradient(loss, v).any()
    near = distillation_loss(v, teacher, factor, None, True)
    twice = distillation_loss(v + (v - teacher).detach(), teacher, factor, None, True)
    torch.testing.assert_close(twice, 2 * near, rtol=1e-6, atol=0)


def test_a_small_difference_of_large_velocities_is_not_rounded_away() -> None:
    """In float32 the difference of two next states is: their own size is 1e4 times it."""
    v = 1.0 + normals(2, 1000).float() * 1e-4
    teacher, x, factor = torch.ones(2, 1000), torch.full((2, 1000), 100.0), torch.tensor(-0.02)
    exact = per_sample((factor.double() * (v.double() - 1)) ** 2)
    assert (distillation_loss(v, teacher, factor).double() / exact - 1).abs().max() < 1e-5
    assert (per_sample(((x + factor * v) - (x + factor * teacher)) ** 2).double() / exact - 1).abs().max() > 1e-2


def test_a_row_asks_its_own_teacher_alone() -> None:
    algorithm = made(teachers=TWO)
    assert algorithm.weights == ("teacher ocr", "teacher shapes") and [f.path for f in algorithm.files.values()] == ["a/ocr", "b/shapes"]
    assert [algorithm.guidance(name) for name in ("policy", *algorithm.weights)] == [None, 4.5, None]
    for dataset, mine in (("words", "teacher ocr"), ("shapes", "teacher shapes")):
        _, point, v = at(algorithm, 0, dataset)
        asked: Counter[str] = Counter()

        def velocity(
            p: Point, weights: str = "policy", guidance: float | None = None, v: Tensor = v, asked: Counter[str] = asked
        ) -> Tensor:
            asked[weights] += 1
            return v if weights == "policy" else p.frozen[weights]

        metrics = algorithm.loss(point, velocity)[1]
        assert asked == {"policy": 1, mine: 1} and [t.teaches(dataset) for t in algorithm.teachers.values()].count(True) == 1
        sizes = {name.partition("/")[2]: len(value) for name, value in metrics.items() if "/" in name}
        assert sizes == {"ocr": 4 * (dataset == "words"), "shapes": 4 * (dataset == "shapes")}


@pytest.mark.parametrize(("dynamics", "train", "noisy", "kept"), [
    ("ODE", {}, 0, 9),
    ("ODE", {"timestep_range": 0.5, "loss_target": "x0"}, 0, 5),
    ("Flow-SDE", {}, 3, 3),
    ("Flow-SDE", {"loss_target": "v"}, 3, 9),
])  # fmt: skip
def test_steps_of_a_rollout_and_those_that_are_kept(dynamics: str, train: dict[str, Any], noisy: int, kept: int) -> None:
    """The last step is left out by default; errors over the variance are of stochastic steps."""
    algorithm = made(dynamics, scheduler={"num_sde_steps": 3}, **train)
    stochastic, stored = algorithm.noisy(0, 1), algorithm.kept(0, 1)
    assert (len(stochastic), len(stored)) == (noisy, kept) and 9 not in stored
    assert algorithm.config.points_per_batch(algorithm.scheduler) == kept
    assert set(stochastic) == set(stored) or kept > noisy
    assert list(stored) == sorted(stored)
