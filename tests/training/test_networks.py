"""Several trained networks in one run of a tiny FLUX.1: each is stepped by itself, all are resumed, and the generator is exported."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.autoencoders.vae import Decoder
from torch import Tensor

from flow_factory.checkpoints.lora_file import lora_file, read_lora
from flow_factory.runs import evaluation_plan
from flow_factory.runs.evaluation_plan import epoch_forwards
from flow_factory.training.run import Run
from flow_factory.training.throughput import work_of
from tests.tiny.run import forwards, read_state, tiny, trained

pytestmark = pytest.mark.exhaustive

SHORT = (
    "train.num_inference_steps=2", "eval.num_inference_steps=2", "train.gradient_step_per_epoch=1", "eval.eval_freq=0",
    "train.real_guidance_scale=3.0",
)  # fmt: skip
NAMES = ["dmd2", "tdm", "tdm-r1"]


def student(folder: Path, name: str, *overrides: str) -> Run:
    rewards = () if name == "tdm-r1" else ("rewards=null", "eval_rewards.reward_model=jpeg_compressibility")
    return tiny(folder, *SHORT, *rewards, f"train.trainer_type={name}", *overrides)


def of(run: Run, network: str) -> dict[str, Tensor]:
    whole = trained(run)
    return {name: whole[name] for name in run.context.store.networks[network]}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", NAMES)
def test_a_turn_steps_its_own_network_alone(tmp_path: Path, name: str) -> None:
    run = student(tmp_path, name, "optimizers=[{name: fake, update_frequency: 2}]")
    learner, engine, policy = run.trainer.learner, run.context.engine, run.context.policy
    base = {k: p.detach().clone() for k, p in policy.named_parameters() if not p.requires_grad}
    networks, before = policy.roles, {network: of(run, network) for network in policy.roles}
    moments: dict[str, dict[str, Tensor]] = {}
    stepped = []

    def look(*_: object) -> None:
        here = learner.turn.network
        stepped.append(here)
        assert policy.role == here
        for network in networks:
            now = of(run, network)
            assert same(now, before[network]) == (network != here), f"{network}, in the turn of {here}"
            before[network] = now
            state = {k: engine.optimizer.state[policy.trained()[k]].get("exp_avg", torch.zeros(())).clone() for k in now}
            assert network == here or network not in moments or same(state, moments[network])
            moments[network] = state

    engine.optimizer.register_step_post_hook(look)
    for _ in range(2):
        assert all(map(torch.isfinite, map(torch.tensor, run.trainer.epoch().values())))
    later = ["surrogate", "policy"] if name == "tdm-r1" else ["policy"]
    assert stepped == ["fake"] * (5 if name == "dmd2" else 1) + 2 * later, "the fake network in every second update"
    assert policy.role == "policy" and all(torch.equal(p, base[k]) for k, p in policy.named_parameters() if k in base)


FORWARDS = {"dmd2": 4 * (5 * 2 + 2 + 2), "tdm": 4 * 2 * (2 + 2 + 2), "tdm-r1": 4 * 2 * (2 + 2 + 2 + 1 + 2) + 4 * 2 * (2 + 1 + 1)}
"""Of an epoch's four micro-batches: the base of dmd2 and tdm is guided, which is two; a surrogate in two micro-batches is surveyed too."""


@pytest.mark.parametrize("name", NAMES)
def test_forwards_are_counted(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = student(tmp_path, name)
    rollouts = run.trainer.collector(0)
    run.trainer.judge(rollouts)
    with forwards(FluxTransformer2DModel) as seen:
        run.trainer.learner.learn(run.trainer.groups(rollouts))
    assert len(seen) == FORWARDS[name] + 1, "and one that sees that the first update has changed something"
    monkeypatch.setattr(evaluation_plan, "BACKWARD", 0)
    rolled = 4 * 2
    assert epoch_forwards(run.context.config) == 2 * (FORWARDS[name] + rolled), "samples, of which a micro-batch has two"
    kept = {"dmd2": 4 * 2, "tdm": 4 * 2 * 2, "tdm-r1": 4 * 2 * (3 + 2 + 1)}[name]  # the base, the slow surrogate, and the survey
    tokens = work_of(run.context, run.context.conds[0])["optimise"].tokens
    assert tokens == 2 * (FORWARDS[name] - kept) * (4 + 16), "latent and text tokens of what trained networks are asked"


def test_pictures_that_nobody_looks_at_are_not_decoded(tmp_path: Path) -> None:
    """Three are shown, which are in the first two micro-batches; what is learnt is the same."""
    run = student(tmp_path, "dmd2", "log.num_samples=3")
    with forwards(Decoder) as decoded:
        rollouts = run.trainer.collector(0)
    run.trainer.judge(rollouts)
    assert len(decoded) == 2 and len(rollouts) == 4 and len(run.trainer.shown) == 3
    with forwards(Decoder) as decoded:
        every = student(tmp_path, "dmd2", "log.num_samples=100").trainer.collector(0)
    assert len(decoded) == 4 and [len(r.media) for r in every] == [2] * 4
    for one, other in zip(rollouts, every, strict=True):
        assert all(torch.equal(a.x, b.x) and torch.equal(a.x1, b.x1) for a, b in zip(one.steps, other.steps, strict=True))


@pytest.mark.parametrize("name", ["dmd2", "tdm-r1"])
def test_a_run_goes_on_exactly(tmp_path: Path, name: str) -> None:
    keys = ("log.save_freq=1", "log.save_model_only=false", "train.lr_scheduler=linear", "train.max_epochs=3", "train.learning_rate=1e-3")
    student(tmp_path, name, *keys)()
    saved = tmp_path / "save" / "run" / "checkpoints"
    student(tmp_path, name, *keys, f"model.resume_path={saved / 'epoch_1'}", "log.run_name=second")()
    straight, resumed = (read_state(tmp_path / "save" / run / "checkpoints" / "epoch_3") for run in ("run", "second"))
    assert straight.keys() == resumed.keys() and same(straight, resumed)
    kinds = {name.split("/")[1] for name in straight if name.startswith("weights/")}
    assert kinds == {"policy", "fake", "ema"} | ({"surrogate", "slow"} if name == "tdm-r1" else set())
    assert all("lora_A.default" in k or "lora_B.default" in k for k in straight if k.startswith("weights/ema/"))


def test_the_generator_is_exported(tmp_path: Path) -> None:
    run = student(tmp_path, "dmd2", "train.ema_decay=0", "train.max_epochs=1")
    run()
    file = lora_file(run.folder / "checkpoints" / "epoch_1")
    assert file is not None
    saved, policy = read_lora(file).tensors, of(run, "policy")
    assert len(saved) == len(policy)
    for name, p in policy.items():
        assert torch.equal(saved[name.removeprefix("transformer.").replace(".default.", ".")].to(p.dtype), p)


def test_a_network_that_is_not_at_work_changes_no_velocity(tmp_path: Path) -> None:
    run = student(tmp_path, "tdm-r1")
    context, learner = run.context, run.trainer.learner
    rollout = run.trainer.collector(0)[0]
    rollout.advantage = torch.zeros(2)
    point = next(iter(learner.points(rollout)))
    with torch.no_grad():
        start = {name: learner.velocity(point, name, 1.0) for name in ("policy", "fake", "surrogate", "slow", "ref")}
        for v in start.values():
            assert torch.equal(v, start["ref"]), "all are the base at first"
        for p in context.policy.trained("fake").values():
            p.add_(0.1)
        moved = {name: learner.velocity(point, name, 1.0) for name in start}
    assert {name for name in start if not torch.equal(start[name], moved[name])} == {"fake"}
