"""The quick start with its reward on a real server and a judge of its own, as the installed commands do it."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.judges.local import LocalVLM
from flow_factory.rewards.judges.question import Question
from tests.rewards.reward_set import pictures
from tests.tiny.forked import forked
from tests.tiny.run import ROOT, environment, logged, started

BIN = Path(sys.executable).parent
SMALL = (
    "train.max_epochs=2", "train.unique_sample_num_per_epoch=3", "train.group_size=4", "train.per_device_batch_size=2",
    "train.gradient_step_per_epoch=1", "train.lr_warmup_steps=0", "eval.group_size=2", "eval.eval_freq=2", "eval.max_rows=4",
    "data.max_dataset_size=8", f"data.dataset_dir={ROOT}/dataset/shapes", "data.cache_dir=cache", "log.save_dir=save",
    f"model.model_name_or_path={ROOT}/assets/tiny-flux-shapes",
)  # fmt: skip
WHICH = "user: 'A: {image_a} B: {image_b} Which one is {prompt}?'\nanswers: [red, blue]\n"


def willing_judge(folder: Path, keys: dict[str, Any]) -> dict[str, Any]:
    """The keys of a random judge that says one of the two words, where another says any; which one is chance."""
    vlm = LocalVLM(RewardArguments(extra_kwargs=keys), torch.device("cpu"), "", 1)
    question = Question("", ("A: ", *pictures(1), "B: ", *pictures(1, 1), "Which one is a red circle?"))
    with torch.no_grad():
        state = vlm.model(**vlm.inputs(question), output_hidden_states=True).hidden_states[-1][0, -1]
        for word in ("red", "blue"):
            vlm.model.lm_head.weight[vlm.processor.tokenizer.encode(word)[0]] += 12 * state / state.square().sum()
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return {"model_name_or_path": str(folder)}


@contextmanager
def serving(folder: Path, *entries: dict[str, Any]) -> Iterator[str]:
    """The address of `ff-reward serve` in a process of its own, which ends well."""
    (folder / "rewards.yaml").write_text(yaml.safe_dump({"rewards": list(entries), "server": {"port": 0, "devices": "cpu", "grace": 5}}))
    with started([str(BIN / "ff-reward"), "serve", "rewards.yaml"], folder) as server:
        assert server.stdout is not None
        found = re.search(r"http://127.0.0.1:\d+", server.stdout.readline())
        assert found is not None
        yield found[0]
        server.terminate()
        assert server.wait() == 0


@pytest.mark.exhaustive
def test_the_quick_start_learns_by_a_reward_on_a_server_and_a_judge_of_groups(
    tmp_path: Path, keys: Callable[[str], dict[str, Any]]
) -> None:
    """Beside the sampling; what it learns and logs is what it does with both rewards in line and here."""
    (tmp_path / "which.yaml").write_text(WHICH)
    judge = {"reward_model": "vlm_pairwise", "name": "judge", "template": "which.yaml", "opponents": 1, "weight": 0.5}
    judge |= willing_judge(tmp_path / "vlm", keys("vlm"))
    shapes = {"reward_model": "shapes", "name": "shapes", "batch_size": 5}
    with serving(tmp_path, shapes) as address:
        remote = {**shapes, "reward_model": "remote", "server_url": address, "max_concurrent": 2, "on_failure": "stop"}
        both = yaml.safe_dump([one | {"async_reward": True, "num_workers": 1 + (one is remote)} for one in (remote, judge)], width=1e9)
        command = [str(BIN / "ff-train"), f"{ROOT}/examples/quickstart.yaml", *SMALL, f"rewards={both}", "eval_rewards=null"]
        done = subprocess.run([*command, "run_name=beside"], cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    here = yaml.safe_dump([shapes, judge], width=1e9)
    done = forked(*command[1:-2], f"rewards={here}", "eval_rewards=null", "run_name=in_line", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    beside, in_line = (logged(tmp_path / "save" / name) for name in ("beside", "in_line"))
    assert beside == in_line
    epochs = [line for line in beside if "train/grad_norm" in line]
    missing = [value for line in beside for name, value in line.items() if "missing/" in name]
    assert len(epochs) == 2 and len(missing) >= 8 and not any(missing)
    assert all(line["train/reward_judge_mean"] == pytest.approx(0.5) and line["train/reward_judge_std"] > 0 for line in epochs)
    assert all(line["train/grad_norm"] > 0 for line in epochs) and "eval/reward_judge_mean" in beside[-1] | beside[-2]
