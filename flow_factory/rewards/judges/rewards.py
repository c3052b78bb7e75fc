"""Three kinds of judges: yes or no, a rubric, and pairs in a group."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from PIL import Image

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.base import GroupwiseRewardModel, RewardModelOutput
from flow_factory.rewards.failures import Failed, Verdict, reward_output
from flow_factory.rewards.judges.base import Judge, PointwiseJudge
from flow_factory.rewards.judges.question import Question, Template
from flow_factory.rewards.judges.verdict import one_word, preferred, rubric
from flow_factory.utils.errors import UserError


class YesNoJudge(PointwiseJudge):
    """P(Yes) / (P(Yes) + P(No)) of the answer's first token, 0 to 1; whether the picture shows its prompt, or what `template` asks."""

    template_name = "shows"

    def verdicts(self, questions: Sequence[Question], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        words = [spellings(word) for word in self.template.answers]
        likely = self.vlm.first([(question, words) for question in questions])
        return [one if isinstance(one, Failed) else one_word((one[0], one[1]), self.template.answers) for one in likely]


class RubricJudge(PointwiseJudge):
    """Mean over `aspects` of the scores that the judge writes down, from 0 to 1 on the template's scale; see `verdict.rubric`."""

    own = ("aspects",)
    template_name = "rubric"

    @classmethod
    def template_of(cls, config: RewardArguments) -> Template:
        template = super().template_of(config)
        known, aspects = list(template.aspects), config.extra_kwargs.get("aspects", list(template.aspects))
        if not known or not isinstance(aspects, list) or not aspects or any(a not in known for a in aspects):
            raise UserError(
                f"reward {config.name!r}: aspects: wants some of {', '.join(known)} (template {template.name!r}), got {aspects!r}"
            )
        return template

    def verdicts(self, questions: Sequence[Question], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        aspects = self.config.extra_kwargs.get("aspects", list(self.template.aspects))
        answers = self.vlm.answers(questions, aspects)
        return [one if isinstance(one, Failed) else rubric(one, self.template, aspects) for one in answers]


class PairwiseJudge(Judge, GroupwiseRewardModel):
    """The share of comparisons in its group that a picture wins, 0 to 1, each pair shown in both orders.

    By the first token: P(A) / (P(A) + P(B)); with `by: answer`, by the judge's last line, for judges that reason: 1, 0, or 0.5 for a tie.
    `opponents: k` compares each picture with the k that follow it in the group, in a ring; all by default.
    """

    own = ("by", "opponents")
    shown = ("image_a", "image_b")
    template_name = "which"
    by: ClassVar[str] = "token"
    """Default of the key `by`: the first token, or the last line of the answer."""

    @classmethod
    def template_of(cls, config: RewardArguments) -> Template:
        opponents = config.extra_kwargs.get("opponents", 1)
        if isinstance(opponents, bool) or not isinstance(opponents, int) or opponents < 1:
            raise UserError(f"reward {config.name!r}: opponents: wants a number of at least 1, got {opponents!r}")
        if config.extra_kwargs.get("by", cls.by) not in ("token", "answer"):
            raise UserError(f"reward {config.name!r}: by: wants token or answer, got {config.extra_kwargs['by']!r}")
        return super().template_of(config)

    def pairs(self, n: int) -> list[tuple[int, int]]:
        """Ordered pairs of the group, each with its reverse."""
        reach = min(self.config.extra_kwargs.get("opponents", n), n - 1)
        once = {tuple(sorted((k, (k + step) % n))) for k in range(n) for step in range(1, reach + 1)}
        return [pair for a, b in sorted(once) for pair in ((a, b), (b, a))]

    def judged(
        self, seen: list[list[Image.Image]], conditions: Sequence[list[Image.Image]], rows: Sequence[Mapping[str, Any]]
    ) -> RewardModelOutput:
        n, row, given = len(seen), rows[0], conditions[0]
        pairs = self.pairs(n)
        questions = [self.template.question({"image_a": seen[a], "image_b": seen[b], "condition_image": given}, row) for a, b in pairs]
        won: list[list[float]] = [[] for _ in range(n)]
        reasons: list[str] = []
        for (a, b), verdict in zip(pairs, self._compared(questions), strict=True):
            if isinstance(verdict, Failed):
                reasons.append(verdict.reason)
            else:
                won[a].append(verdict)
                won[b].append(1 - verdict)
        reason = Failed(reasons[0] if reasons else "nothing to compare it with")
        output = reward_output(self.config, [sum(w) / len(w) if w else reason for w in won])
        return RewardModelOutput(output.rewards, {"error": list(dict.fromkeys(reasons))})

    def _compared(self, questions: Sequence[Question]) -> list[Verdict]:
        if self.config.extra_kwargs.get("by", self.by) == "answer":
            answers = self.vlm.answers(questions)
            return [one if isinstance(one, Failed) else preferred(one, self.template.answers) for one in answers]
        likely = self.vlm.first([(question, [spellings(word) for word in self.template.answers]) for question in questions])
        return [one if isinstance(one, Failed) else one_word((one[0], one[1]), self.template.answers) for one in likely]


def spellings(word: str) -> tuple[str, ...]:
    """The word as a first token may have it: capitals or none, a space before it or none."""
    return tuple(dict.fromkeys(space + form for form in (word, word.lower(), word.capitalize(), word.upper()) for space in ("", " ")))
