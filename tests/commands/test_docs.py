"""Every YAML, command and script of the documentation works."""

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from diffusers import FluxPipeline
from peft import LoraConfig, get_peft_model_state_dict

from flow_factory.cli import RESERVED, parser
from flow_factory.commands.data import parser as data_parser
from flow_factory.commands.evaluate import parser as eval_parser
from flow_factory.commands.export import parser as export_parser
from flow_factory.commands.generate import parser as generate_parser
from flow_factory.commands.reward import parser as reward_parser
from flow_factory.config import load_config
from flow_factory.config.service import load_rewards_config
from flow_factory.rewards.judges.question import load_template
from tests.tiny.run import environment
from tests.tiny.teachers import taught

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "guidance").glob("*.md"))]
OTHERS = {
    "ff-data": data_parser, "ff-reward": reward_parser, "ff-eval": eval_parser, "ff-generate": generate_parser, "ff-export": export_parser,
}  # fmt: skip
EXAMPLES = sorted([*(ROOT / "examples").glob("*.yaml"), *(ROOT / "examples" / "quickstart").glob("*.yaml")])
"""Those for GPUs have a file of tests of their own."""


def blocks(language: str) -> list[tuple[str, str]]:
    """(page and number, text) of every fenced block of a language."""
    found = []
    for page in PAGES:
        texts = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        found += [(f"{page.name}:{k}", text) for k, text in enumerate(texts)]
    return found


def unlaunched(line: str) -> str:
    """`srun ... ff-train ARGUMENTS` and `torchrun ... -m flow_factory ARGUMENTS` as `ff-train ARGUMENTS`."""
    return re.sub(r"^(srun|torchrun|accelerate) .*?(ff-train|-m flow_factory) ", "ff-train ", line)


def commands() -> list[str]:
    lines = [unlaunched(line.split("#")[0].strip()) for _, text in blocks("bash") for line in text.splitlines()]
    inline = [c for page in PAGES for c in re.findall(r"`((?:ff-[a-z]+|make) [^`\n]*)`", page.read_text())]
    return [c for c in (*lines, *inline) if c.split()[0] in ("ff-train", "make", *OTHERS)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_example_is_checked_without_network_or_gpu(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flow_factory.check import check

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    report = check(taught(load_config(path), tmp_path))
    for part in ("data:", "rewards:", "checkpoint:", "plan:", "memory of one process:", "at the peak"):
        assert part in report


@pytest.mark.parametrize("text", [pytest.param(t, id=i) for i, t in blocks("yaml")])
def test_every_yaml_of_the_pages_is_a_config(text: str, tmp_path: Path) -> None:
    """A page may show some sections alone; the README's whole one completes them."""
    whole = next(t for _, t in blocks("yaml") if "model:" in t)
    sections = {m[1] for m in re.finditer(r"^(\w+):", text, re.MULTILINE)}
    rest = re.split(r"^(?=\w)", whole, flags=re.MULTILINE)
    path = tmp_path / "config.yaml"
    (tmp_path / "my_rewards.py").write_text("".join(text for page, text in blocks("python") if page.startswith("rewards.md")))
    if "user" in sections:
        path.write_text(text)
        assert load_template("it", str(path)).user
        return
    if "server" in sections:
        path.write_text(text)
        assert load_rewards_config(path).rewards
        return
    path.write_text(text + "".join(part for part in rest if part and part.split(":")[0] not in sections))
    assert load_config(path).rewards


def test_the_pages_have_commands_and_each_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    seen = [shlex.split(c) for c in commands()]
    assert len(seen) > 8
    written = {words[words.index("--out") + 1] for words in seen if words[:2] == ["ff-train", "init"] and "--out" in words}
    for words in seen:
        if words[0] == "make":
            targets = [w for w in words[1:] if "=" not in w]
            assert all(re.search(rf"^{t}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for t in targets), words
            continue
        if words[0] == "ff-train" and words[1] in RESERVED:
            assert import_module(RESERVED[words[1]]).parser().parse_args(words[2:]).act
            continue
        if words[0] in OTHERS:
            assert OTHERS[words[0]]().parse_args(words[1:]).act
            continue
        args = parser().parse_intermixed_args(words[1:])
        if args.config is not None and args.config.name not in ("CONFIG", *written):
            load_config(args.config, args.overrides)


SCRIPTS = [(i, t, pytest.mark.exhaustive if "flow_factory.train(" in t or "save/RUN" in t else ()) for i, t in blocks("python")]
"""Those that train, or draw with what was trained, take longer."""


@pytest.mark.parametrize("text", [pytest.param(t, id=i, marks=m) for i, t, m in SCRIPTS if not i.startswith(("new_model", "rewards"))])
def test_every_script_of_the_pages_runs(text: str, tmp_path: Path) -> None:
    """Two pages have tests of their own: test_new_model and test_guide."""
    for folder in ("assets", "dataset", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    if trained := re.search(r"save/RUN/\w+/\w+", text):
        pipe = FluxPipeline.from_pretrained(ROOT / "assets" / "tiny-flux-shapes")
        pipe.transformer.add_adapter(LoraConfig(target_modules=["to_q"]))
        pipe.save_lora_weights(tmp_path / trained[0], get_peft_model_state_dict(pipe.transformer))
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_fault_of_the_page_has_its_tests() -> None:
    """Each entry ends with a comment that names tests."""
    page = (ROOT / "guidance" / "faults.md").read_text()
    entries = re.findall(r"^- \*\*.*?(?=^- \*\*|^\n|\Z)", page, re.MULTILINE | re.DOTALL)
    assert len(entries) >= 69
    for entry in entries:
        tests = re.findall(r"(test_\w+)::(test_\w+)", entry.partition("<!--")[2])
        assert tests, entry
        for file, name in tests:
            assert any(f"def {name}(" in path.read_text() for path in (ROOT / "tests").rglob(f"{file}.py")), name


@pytest.mark.slow
def test_the_tables_of_the_hardware_page_are_what_the_script_prints() -> None:
    command = [sys.executable, "benchmarks/hardware.py"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (ROOT / "guidance" / "hardware.md").read_text()
    tables = done.stdout.strip().split("\n\n")
    assert len(tables) == 2 and all(table in page for table in tables)


@pytest.mark.slow
def test_the_quick_start_runs_an_epoch_and_leaves_what_it_promises(tmp_path: Path) -> None:
    small = [
        "train.max_epochs=1",
        "train.unique_sample_num_per_epoch=2",
        "train.gradient_step_per_epoch=1",
        "train.lr_warmup_steps=0",
        "data.max_dataset_size=8",
    ]
    where = [f"log.save_dir={tmp_path}", f"data.cache_dir={tmp_path}/cache", "run_name=quick"]
    command = [sys.executable, "-m", "flow_factory", "examples/quickstart.yaml", *small, *where]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "quick"
    for name in (
        "report.html",
        "metrics.jsonl",
        "config.yaml",
        "curves.png",
        "before_after.png",
        "summary.md",
        "checkpoints/epoch_1/pytorch_lora_weights.safetensors",
    ):
        assert (folder / name).is_file(), name
        if name.endswith((".png", ".html", "epoch_1", "jsonl")):
            assert name in done.stdout
