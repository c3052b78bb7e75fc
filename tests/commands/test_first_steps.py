"""`ff-train examples` and `ff-train init`: from an empty folder to a YAML that passes its check."""

from pathlib import Path

import pytest

from flow_factory.check import report
from flow_factory.cli import main
from flow_factory.commands import examples, init
from flow_factory.commands.init_model import examples_of, meant_by
from flow_factory.config import ConfigError, load_config
from flow_factory.config.places import require_places
from flow_factory.utils.errors import UserError


def test_examples_are_listed_each_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["examples"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0] for line in lines if ".yaml " in line}
    assert {"quickstart.yaml", "grpo/lora/flux1.yaml"} <= listed and not any(name.startswith("launch") for name in listed)
    assert all(examples.listed().values()), "every example says in its first line what it is"


@pytest.mark.parametrize("name", ["quickstart", "grpo/full/flux1.yaml", "examples/quickstart/grpo.yaml"])
def test_an_example_comes_with_what_it_names(tmp_path: Path, name: str) -> None:
    assert main(["examples", name, "--to", "here"]) == 0
    assert main(["examples", name, "--to", "here"]) == 0, "what is there and alike stays"
    (file,) = [f for f in Path("here").rglob("*.yaml") if f.as_posix().endswith(f"{name.removesuffix('.yaml')}.yaml")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("here")
        config = load_config(file.relative_to("here"))
        require_places(config, file)
        assert (Path(config.data.dataset_dir) / "train.jsonl").exists() or (Path(config.data.dataset_dir) / "train.txt").exists()
        assert config.config_file is None or Path(config.config_file).is_file()
        assert Path(config.model.model_name_or_path).is_dir() == ("quickstart" in name)
        assert Path("notebooks/quickstart.ipynb").is_file() == (name == "quickstart")


def test_nothing_of_the_users_is_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    Path("examples").mkdir()
    Path("examples/quickstart.yaml").write_text("mine: true\n")
    assert main(["examples", "quickstart"]) == 2
    assert "examples/quickstart.yaml exists already and differs" in capsys.readouterr().err
    assert [path.name for path in Path().rglob("*") if path.is_file()] == ["quickstart.yaml"]
    assert main(["examples", "no_such"]) == 2
    assert "no example has 'no_such' in its name" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "gpu"), [
    (["--algorithm", "nft", "--model", "sd3-5", "--reward", "HPSv2", "--data", "mine"], 16),
    pytest.param(["--model", "flux1"], 24, marks=pytest.mark.exhaustive),
    pytest.param(["--model", "qwen_image"], 24, marks=pytest.mark.exhaustive),
    pytest.param(["--model", "wan21_t2v", "--num_processes", "4"], 48, marks=pytest.mark.exhaustive),
])  # fmt: skip
def test_what_is_written_fits_the_card(capsys: pytest.CaptureFixture[str], words: list[str], gpu: int) -> None:
    Path("mine").mkdir()
    Path("mine/train.txt").write_text("a fox\n" * 64)
    assert main(["init", *words, "--gpu", str(gpu)]) == 0
    said = capsys.readouterr().out
    assert f"go on with: ff-train run.yaml --check --gpu {gpu}" in said and "written: run.yaml, from the example " in said
    config = load_config("run.yaml")
    assert report(config, gpu)[1]
    assert (config.data.dataset_dir == "mine") == ("mine" in words) and Path(config.data.dataset_dir).is_dir()
    assert "# pictures of each prompt" in Path("run.yaml").read_text()
    assert main(["init", *words]) == 2, "what is there stays"


@pytest.mark.parametrize(("words", "line"), [
    (["--model", "flux9"], "--model: no example for 'flux9'; near are flux2_"),
    (["--algorithm", "ppo"], "--algorithm: 'ppo' is not one of"),
    (["--model", "stabilityai/stable-difusion-3.5-large"], "-difusion-3.5-large'; near are sd3_5"),
    (["--model", "flux", "--algorithm", "crd"], "--model: crd has no example for flux (flux1), but for sd3_5; take one, or --algorithm"),
    (["--model", "Qwen/Qwen-Image-Layered"], "--model: no example for 'Qwen/Qwen-Image-Layered'; near are qwen_image"),
    (["--model", "black-forest-labs/FLUX.1-Redux-dev"], "--model: no example for 'black-forest-labs/FLUX.1-Redux-dev'; near are flux1"),
    (["--model", "/nonexistent/flux1"], "--model: '/nonexistent/flux1' is neither a folder nor a hub name"),
    (["--model", "me/flux1 dev"], "--model: 'me/flux1 dev' is neither a folder nor a hub name"),
    (["--model", "."], "--model: . has no model_index.json; name the folder of a diffusers pipeline"),
    (["--data", "absent"], "--data: there is no absent"), (["--gpu", "0"], "--gpu: '0.0' is not a GPU size in GB"),
    (["--num_processes", "0"], "--num_processes: 0 is not a number of cards"), (["--out", "no/run.yaml"], "--out: there is no folder no"),
    (["--reward", "PikScore"], "--reward: no reward 'PikScore'"),
])  # fmt: skip
def test_what_cannot_be_written_is_a_line(capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    assert main(["init", *words]) == 2
    assert line in capsys.readouterr().err and not Path("run.yaml").exists()


def test_a_terminal_is_asked_what_no_flag_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    answers = iter(["nft", ""])
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    assert init.answer(None, "algorithm", "grpo", ["grpo", "nft"]) == "nft"
    assert init.answer(None, "model", "flux1", ["flux1"]) == "flux1"
    assert init.answer("sd3-5", "model", "flux1", ["sd3_5"]) == "sd3-5"


@pytest.mark.parametrize(("text", "example", "checkpoint"), [
    ("sd3_5", "sd3_5", None), ("sd3-5", "sd3_5", None), ("SD3.5", "sd3_5", None), ("sd3", "sd3_5", None),
    ("black-forest-labs/FLUX.1-dev", "flux1", None), ("FLUX.1-dev", "flux1", None), ("flux", "flux1", None),
    ("black-forest-labs/FLUX.1-schnell", "flux1", "black-forest-labs/FLUX.1-schnell"),
    ("stabilityai/stable-diffusion-3.5-large", "sd3_5", "stabilityai/stable-diffusion-3.5-large"),
    ("me/flux1-kontext-anime", "flux1_kontext", "me/flux1-kontext-anime"), ("flux1-kontext", "flux1_kontext", None),
    ("wan2_t2v", "wan21_t2v", None), ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", "wan22_t2v", None), ("qwen-image-2.1", "qwen_image_21", None),
    ("Qwen/Qwen-Image", "qwen_image", "Qwen/Qwen-Image"), ("Qwen/Qwen-Image-2512", "qwen_image", None),
    ("Qwen/Qwen-Image-Edit-2509", "qwen_image_edit_plus", "Qwen/Qwen-Image-Edit-2509"),
    ("qwen-image-edit-2511", "qwen_image_edit_plus", None),
    ("black-forest-labs/FLUX.2-dev", "flux2_t2i", None), ("flux2", "flux2_t2i", None), ("Lightricks/LTX-2", "ltx2_t2av", None),
    ("Qwen/Qwen-Image-2.1", "qwen_image_21", None), ("./flux1", "sd3_5", "./flux1"),
    ("mine", "flux1", "mine"),
])  # fmt: skip
def test_a_model_is_meant_by_any_of_its_names(text: str, example: str, checkpoint: str | None) -> None:
    Path("mine").mkdir()
    Path("mine/model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    Path("flux1").mkdir()  # a path is no name
    Path("flux1/model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    found = meant_by(text, "grpo", examples_of("grpo", init.known()["grpo"]))
    assert (found.example, found.checkpoint) == (example, checkpoint) and bool(found.why) == bool(checkpoint)


def test_a_modular_pipeline_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    Path("blocks").mkdir()
    Path("blocks/modular_model_index.json").write_text("{}")
    assert main(["init", "--model", "blocks"]) == 2
    assert "--model: blocks is a modular pipeline, for which there is no example; copy a like one" in capsys.readouterr().err


def test_every_type_of_an_example_is_a_name_of_it() -> None:
    choices = examples_of("grpo", init.known()["grpo"])
    for one in choices:
        assert {meant_by(name, "grpo", choices).example for name in (one.name, one.name.replace("_", "-"))} == {one.name}
        assert meant_by(one.checkpoint, "grpo", choices).checkpoint is None
    assert [init.known_algorithm(name) for name in ("grpo-guard", "grpo_guard", "GRPO", "flow-grpo", "opd")] == [
        "grpo_guard", "grpo_guard", "grpo", "grpo", "diffusion_opd",
    ]  # fmt: skip


def test_an_unknown_reward_is_said_before_anything_is_written() -> None:
    with pytest.raises((ConfigError, UserError), match="no reward 'Beauty'"):
        init.fitted(init.adapted({"model": {"model_name_or_path": "a", "model_type": "flux1"}, "train": {}, "rewards": [], "data": {}},
                                 "", "Beauty", 2), 24.0)  # fmt: skip
