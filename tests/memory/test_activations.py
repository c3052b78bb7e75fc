"""The estimate of activations, beside those of a traced forward and backward."""

import gc
import weakref
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flow_factory.config import load_config
from flow_factory.config.recompute import chosen_blocks
from flow_factory.memory.estimate import kept_activations
from flow_factory.memory.rollout import sloping
from flow_factory.models import MODELS
from flow_factory.policy.gradient_checkpointing import Setting, checkpoint_blocks
from tests.tiny.run import ROOT
from tests.tiny.weighed import size_of


class Live(TorchDispatchMode):
    """Follows the bytes of all tensors that come to be inside it."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(out) if isinstance(t, Tensor)):
            if storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize("setting", [True, False, {"fraction": 0.5}, {"every": 2}], ids=str)
def test_activations_are_near_those_of_a_traced_forward_and_backward(setting: Setting) -> None:
    """Of a small FLUX.1 in bfloat16: processors that have no such numbers compute with it many times slower."""
    torch.manual_seed(0)
    heads, layers, tokens, batch = 3, (2, 4), 128, 2
    shape = {"num_attention_heads": heads, "joint_attention_dim": 256, "pooled_projection_dim": 64}
    model = FluxTransformer2DModel(num_layers=layers[0], num_single_layers=layers[1], **shape).bfloat16().requires_grad_(False)
    for name, p in model.named_parameters():
        p.requires_grad_("to_q.weight" in name)  # a gradient has to go all the way
    checkpoint_blocks([model], setting)
    sizes = {"hidden_states": (batch, tokens, 64), "encoder_hidden_states": (batch, 64, 256), "pooled_projections": (batch, 64)}
    inputs = {k: torch.randn(size).bfloat16() for k, size in sizes.items()} | {"timestep": torch.ones(batch).bfloat16()}
    places = {"img_ids": torch.zeros(tokens, 3), "txt_ids": torch.zeros(64, 3)}
    gc.collect()  # else what it finds by chance in cycles of tests before is counted or not
    with Live([*model.parameters(), *inputs.values()]) as live:
        model(**inputs, **places, return_dict=False)[0].float().square().mean().backward()
    again = chosen_blocks(setting, sum(layers))
    said = kept_activations((tokens + 64) * heads * 128 * 2 * batch, sum(layers), again)
    said += size_of(p.grad for p in model.parameters() if p.grad is not None) * (setting is True)  # else activations go as gradients come
    assert 0.75 < said / live.peak < 1.33


@pytest.mark.parametrize("slicing", [False, True])
def test_the_backward_through_a_vae_is_near_a_traced_one(slicing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of FLUX.1's, on the meta device, by DRaFT's keys."""
    monkeypatch.chdir(ROOT)
    keys = ["train.resolution=128", "train.group_size=2", "train.per_device_batch_size=2", f"model.vae_slicing={str(slicing).lower()}"]
    config = load_config(ROOT / "examples/draft/lora/flux1.yaml", keys)
    with torch.device("meta"):
        vae = AutoencoderKL(
            latent_channels=16, block_out_channels=(128, 256, 512, 512), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, use_quant_conv=False, use_post_quant_conv=False,
        )  # fmt: skip
        vae.requires_grad_(False).enable_gradient_checkpointing()
        vae.use_slicing = slicing
        x = torch.randn(2, 16, 16, 16, requires_grad=True)
    with Live([*vae.parameters(), x]) as live:
        vae.decode(x, return_dict=False)[0].sum().backward()
    assert sloping(config, MODELS["flux1"]) * 1e9 == pytest.approx(live.peak / 2, rel=0.15), "here in 32 bits"
