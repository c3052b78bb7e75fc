"""What a pipeline computes from its condition alone is computed once a micro-batch, and never answered wrongly."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from flow_factory.core.condition_memo import ConditionMemo, MemoTable


class Pipe:
    """Its functions count their calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.vae = SimpleNamespace(encode=self._encode, config="stays in reach")

    def _encode(self, x: Tensor) -> Any:
        self.calls.append("vae")
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(torch.cat([x, torch.zeros_like(x)], dim=1)))

    def encode_image(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.calls.append("image")
        return x * scale


def picture(value: float) -> Tensor:
    return torch.full((1, 4, 2, 2), float(value))


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


@pytest.fixture
def memo_table(pipe: Pipe) -> MemoTable:
    return MemoTable(pipe, ("vae.encode", "encode_image", "connectors"))


def mode(out: Any) -> Tensor:
    return out.latent_dist.mode()


def test_later_calls_get_the_first_ones_answers_in_their_order(pipe: Pipe, memo_table: MemoTable) -> None:
    memo = ConditionMemo()
    with memo_table.using(memo):
        first = [mode(pipe.vae.encode(picture(1))), pipe.encode_image(picture(2), scale=3.0), mode(pipe.vae.encode(picture(4)))]
    assert pipe.calls == ["vae", "image", "vae"]
    for _ in range(2):
        with memo_table.using(memo):
            again = [mode(pipe.vae.encode(picture(0))), mode(pipe.vae.encode(picture(0))), pipe.encode_image(picture(0))]
        assert torch.equal(again[0], first[0]) and torch.equal(again[1], first[2]) and torch.equal(again[2], first[1])
    assert pipe.calls == ["vae", "image", "vae"]


def test_equal_inputs_are_computed_once(pipe: Pipe, memo_table: MemoTable) -> None:
    with memo_table.using(ConditionMemo()):
        outs = [mode(pipe.vae.encode(picture(v))) for v in (1, 1, 2, 1)]
    assert pipe.calls == ["vae", "vae"] and [o.mean().item() for o in outs] == [1, 1, 2, 1]


@pytest.mark.parametrize(("a", "b"), [
    ((picture(1), 1.0), (picture(1), 2.0)), ((picture(1), 1.0), (picture(2), 1.0)), ((picture(1), 1.0), (picture(1).double(), 1.0)),
    ((picture(1), 1.0), (picture(1)[:, :2], 1.0)),
])  # fmt: skip
def test_other_inputs_are_computed(pipe: Pipe, memo_table: MemoTable, a: tuple, b: tuple) -> None:
    with memo_table.using(ConditionMemo()):
        outs = [pipe.encode_image(*args) for args in (a, b)]
    assert pipe.calls == ["image", "image"] and torch.equal(outs[1], b[0] * b[1])


def test_a_replay_sees_the_rollouts_draw_from_the_posterior_and_so_does_every_picture_of_a_batch(pipe: Pipe, memo_table: MemoTable) -> None:
    memo, pictures = ConditionMemo(), picture(1).expand(3, -1, -1, -1)
    with memo_table.using(memo):
        drawn = pipe.vae.encode(pictures).latent_dist.sample(torch.Generator().manual_seed(5))
    with memo_table.using(memo):
        again = pipe.vae.encode(pictures).latent_dist.sample([torch.Generator().manual_seed(7)])
    with memo_table.using(ConditionMemo()):
        alone = pipe.vae.encode(picture(1)).latent_dist.sample()
    assert drawn.std() > 0.1 and torch.equal(again, drawn) and torch.equal(drawn, alone.expand(3, -1, -1, -1))
    assert memo.kept["vae.encode"][0].latent_dist.bare is None


def test_with_given_answers_only_the_rest_of_a_call_is_the_pipelines_own(pipe: Pipe, memo_table: MemoTable) -> None:
    memo = ConditionMemo({"encode_image": [picture(5)]}, only=True)
    for _ in range(2):
        with memo_table.using(memo):
            assert pipe.encode_image(picture(1)).mean() == 5
            assert isinstance(pipe.vae.encode(picture(1)).latent_dist, DiagonalGaussianDistribution)
    assert pipe.calls == ["vae", "vae"] and not memo.kept


def test_calls_with_another_guidance_share_what_was_encoded_of_the_same_shape(pipe: Pipe, memo_table: MemoTable) -> None:
    """SD3's ControlNet encodes its picture twice over where there is guidance."""
    memo = ConditionMemo()
    with memo_table.using(memo):
        first = [mode(pipe.vae.encode(picture(v).expand(n, -1, -1, -1))) for v, n in ((1, 1), (2, 2))]
    for _ in range(2):
        with memo_table.using(memo.sibling("without")):
            again = [mode(pipe.vae.encode(picture(v))) for v in (1, 2)]
        assert again[0] is first[0] and torch.equal(again[1], picture(2))
    assert pipe.calls == ["vae"] * 3


def test_two_micro_batches_do_not_mix_and_evaluation_has_no_memo(pipe: Pipe, memo_table: MemoTable) -> None:
    memos = [ConditionMemo(), ConditionMemo()]
    for value, memo in enumerate(memos):
        with memo_table.using(memo):
            pipe.encode_image(picture(value))
    with memo_table.using(memos[0]):
        assert pipe.encode_image(picture(9)).mean() == 0
    with memo_table.using(memos[1]):
        assert pipe.encode_image(picture(9)).mean() == 1
    assert pipe.encode_image(picture(9)).mean() == 9
    with memo_table.using(None):
        assert pipe.encode_image(picture(9)).mean() == 9


def test_what_a_broken_call_left_is_forgotten(pipe: Pipe, memo_table: MemoTable) -> None:
    memo = ConditionMemo()
    with pytest.raises(ZeroDivisionError), memo_table.using(memo):
        pipe.encode_image(picture(1))
        raise ZeroDivisionError
    with memo_table.using(memo):
        assert pipe.encode_image(picture(2)).mean() == 2
    assert memo.full and memo_table.memo is None and pipe.calls == ["image", "image"]


def test_answers_that_are_given_before_need_no_call(pipe: Pipe, memo_table: MemoTable) -> None:
    memo = ConditionMemo({"encode_image": [picture(5)]})
    for _ in range(2):
        with memo_table.using(memo):
            assert pipe.encode_image(picture(1)).mean() == 5 and mode(pipe.vae.encode(picture(2))).mean() == 2
    assert pipe.calls == ["vae"]


def test_what_a_memo_knows_for_one_call_is_not_kept(pipe: Pipe, memo_table: MemoTable) -> None:
    memo = ConditionMemo()
    for value in (5, 6):
        with memo.knowing({"encode_image": [picture(value)]}), memo_table.using(memo):
            assert pipe.encode_image(picture(1)).mean() == value and mode(pipe.vae.encode(picture(2))).mean() == 2
    assert pipe.calls == ["vae"] and not memo.given and memo.kept.keys() == {"vae.encode"}


def test_what_a_pipeline_lacks_is_passed_over_and_the_rest_stays_in_reach(pipe: Pipe, memo_table: MemoTable) -> None:
    assert not hasattr(pipe, "connectors") and pipe.vae.config == "stays in reach"
    assert pipe.encode_image.__name__ == "encode_image"
