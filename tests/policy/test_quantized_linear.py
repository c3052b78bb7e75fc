"""Products in 8 bits: as torchao rounds, differentiable in what comes in, and the same in rollout and training."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flow_factory.config import load_config
from flow_factory.models.quantized import check_quantization
from flow_factory.models.quantized_linear import DYNAMIC, compute_in_8_bits, layers_in_8_bits, rounded_rows
from flow_factory.utils.errors import UserError
from tests.conftest import condition, flux, policy_over, velocity_at
from tests.tiny.run import logged, tiny, trained, write_run

CPU = torch.device("cpu")
LORA = {"finetune_type": "lora", "target_modules": ("default",)}
OFF = {"torchao_int8_dynamic": 0.02, "torchao_float8_dynamic": 0.06}
"""Relative: half a step of 127 levels and of 3 bits behind the point, for normal numbers, of both factors."""


class Blocks(nn.Module):
    """One layer, where a transformer has its blocks."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.blocks = nn.ModuleList([layer])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](x)


def layers(kind: str, bias: bool = True) -> tuple[nn.Linear, Blocks]:
    """A plain layer, and the same in 8 bits."""
    torch.manual_seed(0)
    plain, small = nn.Linear(64, 48, bias).bfloat16(), Blocks(nn.Linear(64, 48, bias).bfloat16())
    small.load_state_dict({f"blocks.0.{k}": v for k, v in plain.state_dict().items()})
    compute_in_8_bits(small.requires_grad_(False), kind, CPU)
    return plain.requires_grad_(False), small


def far(x: Tensor, y: Tensor) -> float:
    return ((x.float() - y.float()).norm() / y.float().norm()).item()


@pytest.mark.parametrize("shape", [(2, 20, 64), (3, 64)])  # the second has fewer rows than a GPU's product takes
@pytest.mark.parametrize("kind", DYNAMIC)
def test_a_layer_and_its_gradient_are_nearly_the_plain_ones(kind: str, shape: tuple[int, ...]) -> None:
    plain, small = layers(kind)
    inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_() for _ in range(2)]
    outs = [layer(x) for layer, x in zip((small, plain), inputs, strict=True)]
    assert outs[0].dtype == torch.bfloat16 and 0 < far(*outs) < OFF[kind]
    g = torch.randn(outs[0].shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    got, expected = (torch.autograd.grad(out, x, g)[0] for out, x in zip(outs, inputs, strict=True))
    assert got.dtype == torch.bfloat16 and 0 < far(got, expected) < OFF[kind]
    kept = small.blocks[0]
    rounded = kept.weight.view(DYNAMIC[kind]).float() * kept.scale  # the gradient is that of the rounded weight, to bf16
    assert far(got, g.float() @ rounded) < 2**-8


def test_it_is_torchaos_own_product() -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    plain, small = layers("torchao_int8_dynamic")
    x = torch.randn(2, 20, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    theirs = nn.Sequential(plain)
    quantize_(theirs, Int8DynamicActivationInt8WeightConfig())
    a, b = torch.full((32, 32), 127, dtype=torch.int8), torch.full((32, 32), -127, dtype=torch.int8)
    if torch._int_mm(a, b)[0, 0] != 32 * 127 * -127:
        pytest.skip("torch's product of integers, which theirs is, cuts off its sums on this CPU")
    assert far(small(x), theirs(x)) < 0.01


@pytest.mark.parametrize("dtype", DYNAMIC.values())
def test_rows_are_rounded_to_the_nearest_and_a_row_of_zeros_stays(dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, -0.5, 0.25], [0.0, 0.0, 0.0], [3e4, 1e-3, -3e4]])
    values, scale = rounded_rows(x, dtype)
    back = values.float() * scale
    assert back.isfinite().all() and not back[1].any() and (back - x).abs().max(-1).values.le(x.abs().amax(-1) / 127).all()


def test_the_blocks_projections_are_in_8_bits_and_nothing_else() -> None:
    names = {name for name, _ in layers_in_8_bits(flux().field.bare["transformer"])}
    assert {"transformer_blocks.0.attn.to_q", "transformer_blocks.1.ff.net.2", "single_transformer_blocks.0.proj_mlp"} <= names
    assert not any("norm" in n or "embed" in n or n in ("proj_out", "x_embedder") for n in names)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.exhaustive)])
def test_it_compiles_with_its_gradient(backend: str, tmp_path: Path) -> None:
    keys = ["model.quantization=torchao_int8_dynamic", "model.compile=true", f"model.compile_backend={backend}", "mixed_precision=bf16"]
    assert load_config(write_run(tmp_path), keys).model.compile
    _, small = layers("torchao_int8_dynamic")
    found = []
    for layer in (small, torch.compile(small, backend=backend, fullgraph=True)):
        x = torch.randn(2, 20, 64, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
        y = layer(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), x)))
    assert all(far(a, b) < 0.01 for a, b in zip(*found, strict=True))  # inductor fuses, and so rounds elsewhere


def test_the_gradient_of_a_lora_is_nearly_the_unquantised_one() -> None:
    found = []
    for kind in (None, "torchao_int8_dynamic"):
        adapter = flux(torch.bfloat16)
        policy = policy_over(adapter, "bf16", **LORA, quantization=kind)
        v = velocity_at(adapter, condition(adapter), torch.bfloat16)
        v.float().square().sum().backward()
        found.append((v.detach(), torch.cat([p.grad.flatten() for p in policy.trained().values() if p.grad is not None])))
    (v, g), (near, other) = found
    assert 0 < far(near, v) < 0.05 and 0 < far(other, g) < 0.1


@pytest.mark.slow
def test_a_run_in_8_bits_learns_exactly_on_policy(tmp_path: Path) -> None:
    run = tiny(tmp_path, "model.quantization=torchao_int8_dynamic", "mixed_precision=bf16", "train.max_epochs=2")
    before = trained(run)
    run()
    assert any(not torch.equal(before[k], p) for k, p in trained(run).items())
    lines = [line for line in logged(tmp_path / "save" / "run") if "train/on_policy_error" in line]
    assert [line["train/on_policy_error"] for line in lines] == [0, 0] and lines[0]["train/first_update_effect"] > 0


def test_float8_asks_for_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"capability 8.9 or more, and this machine has no such GPU; torchao_int8_dynamic works on any"):
        check_quantization("torchao_float8_dynamic")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(UserError, match="and this machine has one of 8.0"):
        check_quantization("torchao_float8_dynamic")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    check_quantization("torchao_float8_dynamic")
