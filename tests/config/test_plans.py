"""What a config works out to: arguments of the pipeline, batches, help."""

import subprocess
import sys
from pathlib import Path

import pytest

from flow_factory.algorithms import ALGORITHMS
from flow_factory.config import TRAIN_CONFIGS, ConfigError, config_help, plan_of
from flow_factory.config.help import SECTIONS
from flow_factory.config.plan import Deal
from flow_factory.config.signature import call_arguments, scheduler_arguments
from tests.config.cases import GOOD, PUBLIC

# -- arguments read from source -----------------------------------------------------------------------------------------------------


def test_call_arguments_are_those_of_the_pipeline():
    import inspect

    from diffusers import FluxPipeline

    real = list(inspect.signature(FluxPipeline.__call__).parameters)[1:]
    assert list(call_arguments("flow_factory.models.flux1:Flux1")) == real


def test_scheduler_arguments_are_those_of_the_flow_schedulers():
    import inspect

    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    real = {p for cls in (FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler) for p in inspect.signature(cls).parameters}
    assert set(scheduler_arguments()) == real
    assert scheduler_arguments()["shift_terminal"].problem(0.1) is None


def test_an_adapter_of_ones_own_is_read_with_its_bases(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_pipes.py").write_text(
        "class Base:\n    def __call__(self, prompt: str, frames: int = 5, scale: float | None = None): ...\nclass Pipe(Base): ...\n"
    )
    (tmp_path / "parent.py").write_text("class Parent:\n    pipeline: str = 'my_pipes:Pipe'\n")
    (tmp_path / "mine.py").write_text("from parent import Parent as P\nclass Mine(P):\n    extra_call_arguments = ('auto_resize',)\n")
    text = GOOD.replace("flux1", "mine.Mine").replace("max_sequence_length: 10", "frames: 9\n  scale: 1\n  auto_resize: true")
    assert load(text).train.call == {"frames": 9, "scale": 1, "auto_resize": True}
    with pytest.raises(ConfigError, match=r"train\.scale: wants float \| None, got true"):
        load(text.replace("scale: 1", "scale: true"))
    with pytest.raises(ConfigError, match=r"train\.max_sequence_length: unknown key"):
        load(text.replace("frames", "max_sequence_length"))


def test_an_adapter_that_does_not_name_its_pipeline_takes_no_extra_argument(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vague.py").write_text("class Mine:\n    pipeline = object\n")
    with pytest.raises(ConfigError, match="train.max_sequence_length: .*must be written as a literal"):
        load(GOOD.replace("flux1", "vague.Mine"))


def test_scheduler_arguments_go_to_overrides(load):
    config = load(GOOD, "scheduler.flow_shift=3", "scheduler.use_dynamic_shifting=false")
    assert config.scheduler.overrides == {"flow_shift": 3, "use_dynamic_shifting": False}


# -- batches ------------------------------------------------------------------------------------------------------------------------


def test_the_plan_of_an_epoch(load):
    plan = plan_of(load(GOOD, "train.num_inner_epochs=2"))
    assert (plan.rows_per_epoch, plan.groups, plan.samples_per_epoch) == (6, 6, 48)
    assert (plan.micro_batches_per_rank, plan.trained_points) == (6, 2)
    assert (plan.micro_batches_per_update, plan.optimiser_steps_per_epoch) == (2, 6)
    assert plan_of(load(GOOD, "train.gradient_accumulation_steps=6")).optimiser_steps_per_epoch == 1
    assert plan_of(load(GOOD, "scheduler.num_sde_steps=null")).trained_points == 7
    assert ("samples an epoch", "48 = 6 groups of 8") in plan.describe()


@pytest.mark.parametrize(("groups", "batches", "steps"), [(8, 4, 2), (8, 4, 8), (2, 4, 2), (3, 4, 3), (48, 4, 2), (1, 8, 1)])
def test_an_optimiser_step_learns_from_the_same_on_any_number_of_processes(groups: int, batches: int, steps: int) -> None:
    """And a group stays on one process wherever steps of whole groups divide over the processes."""
    alone = [set(part) for part in parts(Deal(groups, batches, 1, True).of(0), steps)]
    for processes in (2, 4, 8, 16, 32, 64):
        if groups * batches % (processes * steps):
            continue
        whole = groups % processes == 0 and groups * batches // (processes * steps) % batches == 0
        deal = Deal(groups, batches, processes, whole)
        shares = [parts(deal.of(p), steps) for p in range(processes)]
        assert {len(part) for share in shares for part in share} == {groups * batches // (processes * steps)}
        assert [set().union(*(share[k] for share in shares)) for k in range(steps)] == alone
        homes = {g: {p for p, share in enumerate(shares) for part in share for h, _ in part if h == g} for g in range(groups)}
        assert not whole or all(len(home) == 1 for home in homes.values())


def parts(order: list[tuple[int, int]], steps: int) -> list[list[tuple[int, int]]]:
    size = len(order) // steps
    return [order[k : k + size] for k in range(0, len(order), size)]


def test_only_an_explicit_auto_sampler_rounds_up_and_says_so(load):
    uneven = ["train.group_size=6", "train.unique_sample_num_per_epoch=6", "train.gradient_step_per_epoch=4"]
    config = load(GOOD, *uneven, "data.sampler_type=auto")
    assert (config.train.group_size, config.train.unique_sample_num_per_epoch) == (8, 8)
    assert config.notices == ("data.sampler_type: auto rounded up train.group_size 6 -> 8, train.unique_sample_num_per_epoch 6 -> 8",)
    with pytest.raises(ConfigError, match="multiple"):
        load(GOOD, *uneven)
    assert load(GOOD, "data.sampler_type=auto").notices == ()


def test_keys_without_effect_give_a_line_each(load):
    config = load(GOOD, "scheduler.seed=1", "eval.seed=42", "data.sampler_type=group_contiguous")
    assert [notice.split(" ")[0] for notice in config.notices] == ["data.sampler_type:", "scheduler.seed:"]


def test_noise_at_the_last_step_is_allowed_and_gives_a_line(load):
    (notice,) = load(GOOD, "scheduler.sde_steps=[6, 7]").notices
    assert "step 7, the last one" in notice


# -- help and weight ----------------------------------------------------------------------------------------------------------------


def test_help_lists_every_key_with_its_meaning():
    for name, schemas in SECTIONS.items():
        for schema in schemas:
            lines = config_help(name)
            for key in schema.own_keys():
                field = schema.model_fields[key]
                if name == "run" and (key in SECTIONS or key == "eval_rewards"):
                    continue
                assert field.description, f"{name}.{key}"
                assert any(line.startswith(f"{key} ") for line in lines.splitlines())
    assert set(TRAIN_CONFIGS) == set(ALGORITHMS)
    assert all(len(line) <= 150 for line in config_help().splitlines())
    with pytest.raises(ConfigError, match="'train'"):
        config_help("trian")


def test_help_on_an_algorithm_is_its_train_section_alone():
    assert "\noff_policy " in config_help("nft") and "\nclip_range " not in config_help("nft")
    assert config_help("GRPO_Guard").startswith("train: with trainer_type: grpo-guard")
    assert config_help("flow_factory.algorithms.nft.NFT") == config_help("nft")


def test_a_loaded_configuration_cannot_be_changed(load):
    config = load()
    with pytest.raises(ValueError, match="frozen"):
        config.train.seed = 3


def test_loading_imports_nothing_heavy(tmp_path):
    (tmp_path / "run.yaml").write_text(PUBLIC)
    code = (
        "import sys; from flow_factory.config import load_config; load_config(sys.argv[1]);"
        "print(*{'torch', 'diffusers', 'transformers', 'numpy', 'accelerate'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run.yaml")], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
