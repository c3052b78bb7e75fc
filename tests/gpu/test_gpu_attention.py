"""On a GPU a start takes no kernel of attention whose answers or gradients are wrong, named or not."""

from pathlib import Path

import pytest

from flow_factory.utils.errors import UserError
from tests.gpu.device import REAL
from tests.tiny.kernels import WRONG
from tests.tiny.run import tiny

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kernel", WRONG)
@pytest.mark.parametrize("backend", ["native", pytest.param("null", marks=[] if REAL else pytest.mark.skip("a CPU's own is not asked"))])
def test_a_start_refuses_a_planted_wrong_kernel(backend: str, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once it was found right: nothing is asked again on the same machine, with the same shapes."""
    keys = (f"model.attn_backend={backend}", "mixed_precision=bf16")
    with monkeypatch.context() as planted, pytest.raises(UserError, match=r"^model\.attn_backend: .* this (\w+ )?machine"):
        planted.setattr("torch.nn.functional.scaled_dot_product_attention", WRONG[kernel])
        tiny(tmp_path, *keys)
    assert tiny(tmp_path, *keys).trainer.epoch()["train/on_policy_error"] == 0
