"""Names of model families as users write them."""

import pytest

from flow_factory.models import MODELS
from flow_factory.utils.registry import UnknownName


@pytest.mark.parametrize(("written", "meant"), [
    ("flux1_kontext", "flux1-kontext"), ("FLUX1-Kontext", "flux1-kontext"), ("qwenimage", "qwen-image"), ("qwen_image", "qwen-image"),
    ("zimage", "z-image"), ("z_image_turbo", "z-image"), ("wan22_t2v", "wan2_t2v"), ("wan21-i2v", "wan2_i2v"), ("wan2-v2v", "wan2_v2v"),
    ("sd3", "sd3-5"), ("sd3_5", "sd3-5"), ("flux2_klein_base", "flux2-klein"),
    ("ltx2-t2av", "ltx2_t2av"), ("LTX-2", "ltx2_t2av"), ("flux", "flux1"),
])  # fmt: skip
def test_other_spellings_of_a_family_are_understood(written: str, meant: str) -> None:
    assert MODELS.canonical(written) == meant and MODELS.path(written) == MODELS.table[meant]


@pytest.mark.parametrize(("written", "nearest"), [
    ("qwen-image-edit", "qwen-image-edit-plus"), ("flux3", "flux2"), ("wan2_t2i", "wan2_t2v"), ("ltx3_t2av", "ltx2_t2av"),
])  # fmt: skip
def test_a_family_that_is_not_there_is_refused_with_the_nearest_name(written: str, nearest: str) -> None:
    with pytest.raises(UnknownName, match=f"Did you mean '{nearest}'"):
        MODELS.path(written)


def test_every_alias_leads_to_a_family() -> None:
    assert set(MODELS.aliases.values()) <= set(MODELS)
