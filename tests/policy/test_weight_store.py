"""Named copies of the trained weights: swaps come back to the bit, averages are the closed form."""

import pytest
import torch
from torch import Tensor, nn

from flow_factory.policy.weight_store import WeightStore
from tests.conftest import condition, flux, policy_over, velocity_at


def two_layers(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def stored(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, WeightStore]:
    """A model that has moved on since its weights were kept as "old"."""
    model = two_layers(dtype)
    store = WeightStore(dict(model.named_parameters()))
    store.keep("old")
    write(model, two_layers(dtype, seed=1).state_dict())
    return model, store


@torch.no_grad()
def write(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, p in model.named_parameters():
        p.copy_(weights[name])


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_is_used_inside_and_the_live_weights_return_to_the_bit(dtype: torch.dtype) -> None:
    model, store = stored(dtype)
    live = weights_of(model)
    with store.use("old"):
        assert same(weights_of(model), weights_of(two_layers(dtype)))
    assert same(weights_of(model), live)
    with store.use("policy"):
        assert same(weights_of(model), live)


def test_the_live_weights_return_after_an_error() -> None:
    model, store = stored()
    live = weights_of(model)
    with pytest.raises(ZeroDivisionError), store.use("old"):
        raise ZeroDivisionError
    assert same(weights_of(model), live)


def test_a_copy_is_float32_and_does_not_follow_the_live_weights() -> None:
    model, store = stored(torch.bfloat16)
    kept = store.state_dict()["old"]
    assert same(kept, {k: v.float() for k, v in two_layers(torch.bfloat16).state_dict().items()})
    with store.use("old"):
        write(model, two_layers(torch.bfloat16, seed=2).state_dict())
    assert same(store.state_dict()["old"], kept)


def test_an_unknown_copy_is_an_error() -> None:
    model, store = stored()
    live = weights_of(model)
    with pytest.raises(KeyError, match="average"), store.use("average"):
        pass
    assert same(weights_of(model), live)


def test_the_reference_of_a_lora_is_the_base_model_and_costs_no_copy() -> None:
    adapter, base = flux(), flux()
    policy, cond = policy_over(adapter, finetune_type="lora", target_modules=("default",)), condition(adapter)
    store, v = WeightStore(policy.trained(), policy.disable_adapter), velocity_at(adapter, cond)
    store.keep("ref")
    with store.use("ref"):
        assert torch.equal(velocity_at(adapter, cond), velocity_at(base, cond))
    assert torch.equal(velocity_at(adapter, cond), v) and not store.copies


def test_the_reference_of_a_full_model_is_a_copy() -> None:
    model, store = stored()
    live = weights_of(model)
    store.keep("ref")
    write(model, two_layers(seed=2).state_dict())
    with store.use("ref"):
        assert same(weights_of(model), live)


def test_an_average_is_the_closed_form() -> None:
    """d^k w_0 + (1 - d) sum_i d^(k - 1 - i) w_i, the older the weaker."""
    model, decay = two_layers(), 0.9
    store = WeightStore(dict(model.named_parameters()))
    store.keep("ema")
    history = [weights_of(two_layers(seed=k)) for k in range(6)]
    for weights in history[1:]:
        write(model, weights)
        store.blend("ema", decay)
    for name, average in store.state_dict()["ema"].items():
        expected = decay**5 * history[0][name].double() + (1 - decay) * sum(
            decay ** (5 - i) * history[i][name].double() for i in range(1, 6)
        )
        torch.testing.assert_close(average.double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("decay", "expected"), [(0.0, 1), (1.0, 0)])
def test_an_average_at_its_limits(decay: float, expected: int) -> None:
    """Decay 0 takes the live weights, to the bit; 1 keeps the copy."""
    model, store = stored()
    store.blend("old", decay)
    assert same(store.state_dict()["old"], weights_of(two_layers(seed=expected)))


def test_an_average_of_bf16_weights_keeps_small_changes() -> None:
    """1 + 1e-4 is 1 in bfloat16: an average stored in it would never move."""
    model = two_layers(torch.bfloat16)
    store = WeightStore(dict(model.named_parameters()))
    write(model, {k: torch.ones_like(v) for k, v in model.state_dict().items()})
    store.keep("ema")
    write(model, {k: torch.full_like(v, 2.0) for k, v in model.state_dict().items()})
    store.blend("ema", 1 - 1e-4)
    assert all(torch.allclose(v, torch.tensor(1.0001), atol=1e-7, rtol=0) for v in store.state_dict()["ema"].values())


def test_a_swap_between_forward_and_backward_is_refused_by_autograd() -> None:
    model, store = stored()
    loss = model(torch.ones(1, 4)).sum()
    with store.use("old"):
        pass
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
