"""What a pipeline returns for a prompt is known for any number of prompts, or it is said that it is not."""

from typing import Any

import pytest
import torch

from flow_factory.models.growth import grown, growth_of


def ragged(n: int) -> list[torch.Tensor]:
    return [torch.arange(6.0).view(3, 2)] * n


ANSWERS = {
    "a tensor": lambda n: torch.arange(6.0).view(1, 3, 2).expand(n, -1, -1),
    "along the second dimension": lambda n: torch.arange(4.0).view(2, 1, 2).expand(-1, n, -1),
    "two an entry": lambda n: torch.arange(2.0).repeat_interleave(n)[:, None],
    "the same": lambda n: torch.arange(5),
    "nothing": lambda n: None,
    "a list a prompt": ragged,
    "a tuple": lambda n: (ragged(n), torch.ones(n, 2), None, 7),
    "cumulative lengths": lambda n: {"cu_seqlens": torch.arange(n + 1, dtype=torch.int32) * 9, "embeds": torch.ones(n, 9)},
    "texts": lambda n: ["a red cube"] * n,
}


def flat(value: Any) -> list[Any]:
    return [x.tolist() if isinstance(x, torch.Tensor) else x for x in torch.utils._pytree.tree_leaves(value)]


@pytest.mark.parametrize("seen", [2, 3])
@pytest.mark.parametrize("name", ANSWERS)
def test_the_answer_to_any_number_of_prompts_follows_from_two_answers(name: str, seen: int) -> None:
    answer = ANSWERS[name]
    growth = growth_of(answer(1), answer(seen), seen)
    for n in (1, 2, 3, 5):
        made = grown(answer(1), growth, n)
        assert type(made) is type(answer(n)) and flat(made) == flat(answer(n))


@pytest.mark.parametrize(("one", "two"), [
    (torch.ones(1, 3), torch.ones(1, 4)), (torch.ones(1, 3), torch.ones(2, 6)), (torch.ones(1, 3), torch.ones(2)), (torch.ones(2), None),
    ([1, 2], [1, 2, 3]), ([1], (1, 1)), (torch.tensor([0, 4]), torch.tensor([0, 4, 9])),
])  # fmt: skip
def test_another_growth_is_refused(one: Any, two: Any) -> None:
    with pytest.raises(ValueError, match="becomes"):
        growth_of(one, two, 2)
