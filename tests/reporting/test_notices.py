"""What may surprise of a right config is said in the plan of --check."""

from pathlib import Path

import pytest

from flow_factory.check import plan_lines
from flow_factory.config import load_config
from tests.tiny.run import ROOT

EXAMPLES = ROOT / "examples"
LOADED = ("model.resume_path=earlier", "model.resume_type=lora")


@pytest.mark.parametrize(("example", "overrides", "says"), [
    ("nft/lora/sd3_5.yaml", (), []),
    ("nft/lora/sd3_5.yaml", ("train.guidance_scale=4.5",), ["train.guidance_scale: 4.5: nft rolls out with classifier-free guidance"]),
    ("dgpo/lora/sd3_5.yaml", (), ["train.guidance_scale: 4.5: dgpo rolls out with"]),
    ("nft/lora/flux1.yaml", ("train.guidance_scale=3.5",), []),
    ("grpo/lora/sd3_5.yaml", (), []),
    ("grpo/lora/sd3_5.yaml", LOADED, []),
    ("grpo/lora/sd3_5.yaml", (*LOADED, "train.kl_beta=0.1"), ["train.reference: base: the reference is the checkpoint without"]),
    ("grpo/lora/sd3_5.yaml", (*LOADED, "train.kl_beta=0.1", "train.reference=start"), ["the reference is the weights of model"]),
    ("nft/lora/wan21_t2v.yaml", (), ["by UniPC of second order", "the VAE decodes in bf16"]),
])  # fmt: skip
def test_the_plan_says_what_may_surprise(example: str, overrides: tuple[str, ...], says: list[str]) -> None:
    notes = [line for line in plan_lines(load_config(EXAMPLES / example, overrides)) if line.startswith("note: ")]
    assert len(notes) == len(says) and all(text in line for text, line in zip(says, notes, strict=True))


def test_a_key_that_counts_for_one_reward_only_is_said_of_several(tmp_path: Path) -> None:
    text = (EXAMPLES / "nft/lora/flux1.yaml").read_text()
    file = tmp_path / "two.yaml"
    file.write_text(
        text[: text.index("rewards:")] + "rewards:\n  a: {reward_model: jpeg_compressibility}\n  b: {reward_model: jpeg_compressibility}\n"
    )
    for value in ("true", "false"):
        said = plan_lines(load_config(file, ["train.advantage_aggregation=gdpo", f"train.global_std={value}"]))
        (line,) = [line for line in said if "global_std" in line]
        assert f"train.global_std: {value} has no effect with several rewards: gdpo normalises each of them in its group" in line
    assert not any("global_std" in line for line in plan_lines(load_config(file, ["train.advantage_aggregation=sum"])))
