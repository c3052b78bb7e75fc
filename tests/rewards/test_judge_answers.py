"""What of a judge's answer is a score."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_factory.hparams import RewardArguments
from flow_factory.rewards import REWARDS
from flow_factory.rewards.failures import Failed
from flow_factory.rewards.judges.question import Template, load_template
from flow_factory.rewards.judges.verdict import one_word, preferred, rubric

T2I = load_template("it", "rational_rewards_t2i")
LONG = """# User Request Analysis
Text Faithfulness matters here, say 3 of 4.
# Detailed Judgement
1. Text Faithfulness:
## Justification: two dogs of the 3, a score of 4 would be too much
## Score: 3.4
2. **Physical and Visual Quality:**
## Justification: fine
## Score: [3.1]
3. Text Rendering:
## Score: N/A
# Summary: Score: 1
"""


@pytest.mark.parametrize(("answer", "score"), [
    (LONG, (3.25 - 1) / 3),
    (LONG.replace("N/A", "4"), (3.5 - 1) / 3),
    ("<think>Text Faithfulness: 1</think>" + LONG, (3.25 - 1) / 3),
    ("Text Faithfulness: 4\nPhysical and Visual Quality: **2.5/4**\nText Rendering: n/a", (3.25 - 1) / 3),
    ('{"text_faithfulness": 4, "Physical and Visual Quality": 2.5, "text_rendering": null}', (3.25 - 1) / 3),
    ('```json\n{"text_faithfulness": 4, "physical_quality": 1, "text_rendering": "N/A"}\n```', 0.5),
    (LONG.replace("3.4", "4.1"), None), (LONG.replace("3.4", "0"), None), (LONG.replace("3.4", "-3"), None),
    (LONG.replace("3.4", "3 or 4"), None), (LONG.replace("3.4", "about 3.4"), None), (LONG.replace("3.4", "nan"), None),
    (LONG.replace("3.4", "3.4\n## Score: 2"), None), (LONG.replace("## Score: 3.4", ""), None), (LONG.partition("3. Text")[0], None),
    (LONG.replace("3.4", "N/A").replace("[3.1]", "N/A"), None), (LONG.replace("3.4", "1e9"), None),
    ("I cannot judge this picture.", None), ("", None), ("4", None), ("{}", None), ("null", None), ("[4, 4, 4]", None),
    ('{"text_faithfulness": true, "physical_quality": 1, "text_rendering": 1}', None),
    ('{"text_faithfulness": NaN, "physical_quality": 1, "text_rendering": 1}', None),
    ('{"text_faithfulness": "4", "physical_quality": 1, "text_rendering": 1}', None),
])  # fmt: skip
def test_a_rubric_is_read_strictly(answer: str, score: float | None) -> None:
    found = rubric(answer, T2I, list(T2I.aspects))
    assert isinstance(found, Failed) if score is None else found == pytest.approx(score)


@given(st.text(alphabet=st.sampled_from('1234.,-/:#* \n{}[]"NAaScore'), max_size=60), st.integers(0, 2))
@settings(max_examples=30, deadline=None, database=None, derandomize=True)
def test_no_answer_is_a_number_outside_the_scale(noise: str, at: int) -> None:
    for answer in (noise, LONG.replace("## Score:", f"## Score: {noise}", at + 1), f"Text Faithfulness: {noise}"):
        found = rubric(answer, T2I, ["text_faithfulness"])
        assert isinstance(found, Failed) or 0 <= found <= 1


@pytest.mark.parametrize(("answer", "score"), [
    ("A", 1), ("b.", 0), ("Winner: A", 1), ("**Final answer: B**", 0), ("A is nice.\nBetter: tie", 0.5), ("The better is [A]", None),
    ("A or B", None), ("Winner: C", None), ("", None), ("Winner: A\nbut B is close", None), ("<think>Winner: A</think>", None),
])  # fmt: skip
def test_a_preference_is_read_strictly(answer: str, score: float | None) -> None:
    found = preferred(answer, ("A", "B"))
    assert isinstance(found, Failed) if score is None else found == score


@pytest.mark.parametrize(("answer", "score"), [
    ("Image 1 is better", 1), ("Both are good.\n**Image 2 is better than Image 1.**", 0), ("Image 1 is betterish", None),
    ("Image 3 is better", None), ("I think Image 1 is better", None), ("tie", 0.5),
])  # fmt: skip
def test_a_preference_in_several_words_is_read_strictly(answer: str, score: float | None) -> None:
    found = preferred(answer, ("Image 1 is better", "Image 2 is better"))
    assert isinstance(found, Failed) if score is None else found == score


def test_a_judge_that_says_neither_yes_nor_no_gives_no_score() -> None:
    assert one_word((0.3, 0.1), ("Yes", "No")) == pytest.approx(0.75)
    for both in ((0.0, 0.0), (0.03, 0.01), (math.nan, 0.5)):
        assert isinstance(one_word(both, ("Yes", "No")), Failed)


def test_templates_that_come_along_are_whole() -> None:
    assert isinstance(T2I, Template)
    for name in REWARDS:
        if "judges" in REWARDS.table[name]:
            template = REWARDS[name].template_of(RewardArguments(name="it", reward_model=name))
            assert set(template.places) & {"image", "image_a"} and len(template.answers) == 2
