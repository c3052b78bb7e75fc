"""Reads a score from a judge's answer. An answer that cannot be read, or that is ambiguous, gives no score."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flow_factory.rewards.failures import Failed
from flow_factory.rewards.judges.question import Template

LEAST = 0.05
"""If both words together have less than this probability, the judge answered neither."""
NUMBER = r"[-+]?\d+(?:\.\d+)?"
MARKS = r"[^\w\n]{0,20}"
"""Of Markdown, around a title."""
ABSENT = object()


def one_word(probabilities: tuple[float, float], answers: tuple[str, str]) -> float | Failed:
    """P(first) / (P(first) + P(second)) of the answer's first token."""
    first, second = probabilities
    if not first + second >= LEAST:
        return Failed(f"the judge answers neither {answers[0]} nor {answers[1]} (probability {first + second:.2g})")
    return first / (first + second)


def rubric(answer: str, template: Template, aspects: Sequence[str]) -> float | Failed:
    """Mean m of the aspects, (m - low) / (high - low); an aspect that the answer says does not apply (N/A) is left out.

    Reads a JSON object of aspects where the answer is one, else the number after each aspect's title, on its line or in a line
    `Score: x` below it. Every aspect must be there, once or in agreement, and inside the scale.
    """
    text = answer.rpartition("</think>")[2].strip()
    low, high = sorted(template.scale)
    found: list[float] = []
    values = _json(text, template, aspects) or _titled(text, template.aspects)
    for name in aspects:
        written = values.get(name, [])
        if not written:
            return Failed(f"the judge's answer has no score of {name}")
        if any(value != written[0] for value in written):
            return Failed(f"the judge's answer has several scores of {name}")
        if written[0] is None:
            continue
        if not (math.isfinite(written[0]) and low <= written[0] <= high):
            return Failed(f"the judge's score of {name}, {written[0]:g}, is outside {low:g} to {high:g}")
        found.append(written[0])
    if not found:
        return Failed("the judge's answer says that no aspect applies")
    return (sum(found) / len(found) - template.scale[0]) / (template.scale[1] - template.scale[0])


def _json(text: str, template: Template, aspects: Sequence[str]) -> dict[str, list[float | None]]:
    """The aspects in an answer that is one JSON object, also inside a code fence; else an empty mapping."""
    try:
        value = json.loads(re.sub(r"^```(?:json)?\s*|\s*```$", "", text))
    except ValueError:
        return {}
    if not isinstance(value, dict):
        return {}
    read = {name: _number(value.get(name, value.get(template.aspects[name], ABSENT))) for name in aspects}
    return {name: [] if number is ABSENT else [number] for name, number in read.items()}


def _number(value: Any) -> Any:
    if value is None or value == "N/A":
        return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else ABSENT


def _titled(text: str, titles: Mapping[str, str]) -> dict[str, list[float | None]]:
    """Every number that stands under a title, or N/A as None."""
    heads = "|".join(f"(?P<{name}>{re.escape(title)})" for name, title in titles.items())
    marks = list(re.finditer(rf"(?im)^{MARKS}(?:\d+[.)]\s*)?{MARKS}(?:{heads}){MARKS}?(?::|$)", text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)] * bool(marks)
    values: dict[str, list[float | None]] = {name: [] for name in titles}
    for mark, end in zip(marks, ends, strict=True):
        block = text[mark.end() : end]
        block = re.split(r"(?m)^#\s", block)[0]  # a heading of the answer's own
        line = block.partition("\n")[0]
        lines = [line, *re.findall(rf"(?im)^{MARKS}(?:final\s+)?score{MARKS}?:(.*)$", block)]
        values[str(mark.lastgroup)] += [value for one in lines for value in _read(one)]
    return values


def _read(line: str) -> list[float | None]:
    """The number in a line that has nothing else: plain or `x/4`, also in brackets or bold; else nothing."""
    bare = line.strip(" \t\r*[]()`.")
    if re.fullmatch(r"(?i)n\s*/\s*a|not applicable", bare):
        return [None]
    number = re.fullmatch(rf"({NUMBER})(?:\s*(?:/|out of)\s*\d+(?:\.\d+)?)?", bare)
    return [float(number[1])] if number else []


def preferred(answer: str, answers: tuple[str, str]) -> float | Failed:
    """1 where the answer's last line names the first, 0 the second, 0.5 a tie; `Winner: A`, `Better: B`, or the word alone.

    Answers of several words may go on: `Image 1 is better than Image 2`.
    """
    text = answer.rpartition("</think>")[2].strip()
    last = text.splitlines()[-1] if text else ""
    bare = re.sub(r"(?i)^[^\w]*(?:(?:final\s+)?(?:winner|better|answer|choice|verdict)(?:\s+is)?\s*:?)?[^\w]*", "", last).strip(
        " \t*[]()`.\"'"
    )
    scores = {answers[0].lower(): 1.0, answers[1].lower(): 0.0, "tie": 0.5, "equal": 0.5}
    for word, score in zip(answers, (1.0, 0.0), strict=True):
        if " " in word and re.match(rf"{re.escape(word)}\b", bare, re.IGNORECASE):
            return score
    return scores.get(bare.lower(), Failed(f"the judge's last line names neither {answers[0]} nor {answers[1]}: {last[:80]!r}"))
