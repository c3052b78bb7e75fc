"""A judge's question, from a template in a file."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from flow_factory.utils.errors import UserError, file_errors

FOLDER = Path(__file__).parent / "templates"
SAMPLES = ("image", "image_a", "image_b")
PICTURES = (*SAMPLES, "condition_image")
"""Placeholders that stand for pictures; any other is the prompt or a column of the data set."""
PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Question:
    """One turn of a chat: texts and pictures in their order."""

    system: str
    parts: tuple[str | Image.Image, ...]


@dataclass(frozen=True)
class Template:
    """The text of a question, and how its answer is read.

    `{prompt}`, `{image}`, `{condition_image}` and any column of the data set by its name; `{image_a}`, `{image_b}` where two are compared.
    """

    name: str
    user: str
    system: str = ""
    answers: tuple[str, str] = ("Yes", "No")
    """For a question that is answered in one word: the word that scores 1 (or picture A), and the word that scores 0."""
    aspects: Mapping[str, str] = field(default_factory=dict)
    """For a rubric: name of an aspect -> its title in the answer."""
    scale: tuple[float, float] = (0.0, 1.0)
    """For a rubric: the values that score 0 and 1."""

    @property
    def places(self) -> tuple[str, ...]:
        """The placeholders, each once."""
        return tuple(dict.fromkeys(PLACE.findall(self.system + self.user)))

    @property
    def samples(self) -> tuple[str, ...]:
        """The placeholders of pictures that are scored, sorted."""
        return tuple(sorted({*PLACE.findall(self.user)} & set(SAMPLES)))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have, besides its prompt."""
        return tuple(p for p in self.places if p not in (*PICTURES, "prompt"))

    def question(self, pictures: Mapping[str, Sequence[Image.Image]], texts: Mapping[str, Any]) -> Question:
        """The question of a sample. Text in a prompt or column is never read as a placeholder."""

        def text_of(place: str) -> str:
            value = texts[place]
            return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

        parts: list[str | Image.Image] = []
        for k, piece in enumerate(PLACE.split(self.user)):
            new: Sequence[str | Image.Image] = pictures[piece] if k % 2 and piece in PICTURES else [text_of(piece) if k % 2 else piece]
            for one in new:
                if isinstance(one, str) and parts and isinstance(parts[-1], str):
                    parts[-1] += one
                elif one != "":
                    parts.append(one)
        return Question(PLACE.sub(lambda place: text_of(place[1]), self.system), tuple(parts))


def load_template(reward: str, name: str) -> Template:
    """Loads a bundled template by its name, or a YAML file by its path.

    Raises:
        UserError: there is none, or it is damaged.
    """
    where = f"reward {reward!r}: template"
    built_in = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    path = FOLDER / f"{name}.yaml" if name in built_in else Path(name).expanduser()
    with file_errors(where, path, f"write the path of a YAML file, or one of {', '.join(built_in)}"):
        text = path.read_text(encoding="utf-8")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict) or not isinstance(value.get("user"), str):
        raise UserError(f"{where}: {path} has no text under the key user")
    if unknown := value.keys() - {"system", "user", "answers", "aspects", "scale"}:
        raise UserError(f"{where}: {path} has the key {min(map(str, unknown))!r}; it takes system, user, answers, aspects, scale")
    return Template(name=name, **_checked(value, f"{where}: {path}"))


def _checked(value: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(value.get("system", ""), str):
        raise UserError(f"{where}: system must be a text")
    if wrong := [place for place in PLACE.findall(value.get("system", "")) if place in PICTURES]:
        raise UserError(f"{where}: system has {{{wrong[0]}}}, and only user may show pictures")
    for key, kind, what in (("answers", str, 'texts, such as ["Yes", "No"] in quotes'), ("scale", int | float, "numbers")):
        pair = value.get(key)
        if pair is not None and not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, kind) for p in pair) and pair[0] != pair[1]
        ):
            raise UserError(f"{where}: {key} must be a list of two different {what}")
    aspects = value.get("aspects", {})
    if not isinstance(aspects, dict) or not all(isinstance(p, str) and p for pair in aspects.items() for p in pair):
        raise UserError(f"{where}: aspects must map names to the titles that they have in the answer")
    if wrong := [name for name in aspects if not name.isidentifier()]:
        raise UserError(f"{where}: aspects: {wrong[0]!r} must be a name of letters, digits and underscores")
    return {key: tuple(one) if isinstance(one, list) else one for key, one in value.items()}
