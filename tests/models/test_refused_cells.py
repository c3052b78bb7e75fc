"""Models and algorithms that do not go together are refused with the reason."""

from pathlib import Path
from typing import Any

import pytest

from flow_factory.models.loading import load_adapter
from flow_factory.utils.errors import UserError
from tests.models.matrix import config_of, fit
from tests.tiny.pipelines import saved
from tests.tiny.run import write_rows

HIGH = {"model.target_components": ["transformer"]}


@pytest.mark.parametrize(
    ("name", "algorithm", "keys", "said"),
    [
        ("flux2", "crd", {}, r"train.kl_cfg: this Flux2 has no classifier-free guidance; write 1.0"),
        ("flux2-klein", "dgpo", {"train.kl_cfg": 4.5}, r"train.kl_cfg: this Flux2Klein has"),
        ("ltx2-t2av", "sft", {}, r"train.trainer_type: media cannot be encoded for LTX2"),
        ("ltx2-t2av", "dpo", {"train.offline": True, "train.group_size": 2}, r"train.offline: media cannot be encoded for LTX2"),
        ("wan22-a14b-t2v", "nft", HIGH, r"train.timestep_range: .* write \[0, 0.4\], or train both experts"),
        (
            "wan22-a14b-t2v",
            "awm",
            HIGH | {"train.time_sampling_strategy": "uniform"},
            r"train.time_sampling_strategy: .* train both experts",
        ),
        ("wan22-a14b-t2v", "diffusion-opd", HIGH, r"train.timestep_range: transformer_2 draws steps .* train both experts"),
        (
            "flux2",
            "diffusion-opd",
            {"train.teachers": [{"path": "a", "guidance_scale": 4.0}]},
            r"train.teachers.0.guidance_scale: this Flux2 has no classifier-free guidance; write 1.0",
        ),
        ("wan22-a14b-t2v", "draft", HIGH, r"train.draft_steps: transformer_2 draws steps .* train both experts"),
        ("hunyuan_video15", "draft", {}, r"train.guidance_scale: is classifier-free guidance here"),
        ("wan22-a14b-t2v", "dpo", HIGH, r"train.timestep_range: .* train both experts"),
        ("hunyuan_video15", "tdm", {}, r"train.trainer_type: HunyuanVideo15Pipeline samples with the guider of its checkpoint, and tdm "),
        ("ltx2-t2av", "dmd2", {"train.stg_scale": 1.0}, r"train: LTX2Pipeline would sample .* write stg_scale: 0, and the same in eval:"),
        ("wan22-a14b-t2v", "tdm", HIGH, r"model.target_components: .* train both experts"),
        ("flux2", "tdm-r1", {}, r"real_guidance_scale: this Flux2 has no .*; write 1.0, with tdm_weight: 0 and"),
    ],
)
def test_a_cell_that_cannot_work_is_refused_with_the_reason(
    name: str, algorithm: str, keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_rows(tmp_path / "train.jsonl", [{"prompt": "a"}])
    with pytest.raises(UserError, match=said):
        fit(config_of(name, algorithm, tmp_path, **keys))


def test_a_scale_that_a_distilled_checkpoint_does_not_read_is_no_further_guidance(tmp_path: Path) -> None:
    config = config_of("flux2-klein", "dmd2", tmp_path)
    assert config.train.guidance_scale > 1 and fit(config).train == config.train


def test_one_expert_alone_is_trained_at_its_own_noise_levels(tmp_path: Path) -> None:
    config = config_of("wan22-a14b-t2v", "nft", tmp_path, **HIGH, **{"train.timestep_range": 0.4})
    assert fit(config) == config


def test_guidance_that_is_an_input_of_an_unknown_pipelines_model_stays_what_it_is() -> None:
    adapter = load_adapter(str(saved("flux1")), "diffusers", "fp32")
    assert adapter.takes(adapter.with_guidance({"guidance_scale": 3.5}, 1.0)) == {"guidance_scale": 3.5, "true_cfg_scale": 1.0}
