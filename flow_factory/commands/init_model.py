"""The example that `ff-train init --model` means: an example's name, a model type, a name on the hub, or a folder."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from flow_factory.commands.examples import root
from flow_factory.models import MODELS
from flow_factory.utils.errors import UserError

KEYS = re.compile(r"^  (model_name_or_path|model_type): *(\S+)", re.MULTILINE)
NEAR = 4
"""The number of near names that an error proposes."""
DATED = re.compile(r"-\d{4}$")
"""The year and the month of a checkpoint, which others of its family have too."""
ELSE = "for which there is no example; copy a like one, and write model_type: diffusers"
CONDITIONED = re.compile(r"_(?:i2|v2|edit)")
"""In the name of an example whose prompts have pictures or videos."""
OTHERS = ("canny", "control", "depth", "edit", "fill", "i2i", "i2v", "inpaint", "kontext", "layered", "redux", "v2v", "vace")
"""In a repository's name, of a model of another kind than the family that the rest of the name is of."""


@dataclass(frozen=True)
class Known:
    """An example of an algorithm."""

    name: str
    """Its file's name without `.yaml`."""
    checkpoint: str
    """`model.model_name_or_path`"""
    model_type: str


@dataclass(frozen=True)
class Meant:
    """The answer."""

    example: str
    checkpoint: str | None = None
    """In place of the example's; None: the example's own."""
    why: str = ""
    """A line on how another checkpoint was assigned to the example."""


def plain(name: str) -> str:
    """Letters and digits alone, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def examples_of(algorithm: str, names: Sequence[str]) -> list[Known]:
    """The examples with a LoRA: those of text alone first, and of them the shortest names."""
    found = []
    for name in sorted(names, key=lambda name: (CONDITIONED.search(name) is not None, len(name), name)):
        keys = dict(KEYS.findall((root() / f"examples/{algorithm}/lora/{name}.yaml").read_text("utf-8")))
        found.append(Known(name, keys["model_name_or_path"], MODELS.canonical(keys["model_type"])))
    return found


def meant_by(text: str, algorithm: str, known: Sequence[Known]) -> Meant:
    """The example for what a user calls a model.

    Raises:
        UserError: there is none; with names that are near. Or the text is a path, and no folder.
    """
    from flow_factory.utils.hub import looks_local, require_source

    folder = Path(text).expanduser()
    path = "/" in text and looks_local(text)
    if not folder.is_dir() and "/" in text:
        require_source(text, "--model", "model_index.json", now=False)
    for one in () if path else known:
        if plain(text) in (plain(one.name), plain(one.checkpoint), plain(one.checkpoint.rpartition("/")[2])):
            return Meant(one.name)
    if (kind := MODELS.canonical(text)) in MODELS.table:
        return Meant(_of_type(kind, text, algorithm, known).name)
    found = _type_of_folder(folder) if folder.is_dir() else _type_of_name(text, known) if "/" in text else None
    if found is None:
        raise UserError(f"--model: no example for {text!r}; {_near(text, known)}")
    one, why = _of_type(found, text, algorithm, known), "its model_index.json" if folder.is_dir() else "its name"
    return Meant(one.name, text, f"{text} is taken as {found}, by {why}: the sizes are those of the example, for {one.checkpoint}")


def _of_type(kind: str, text: str, algorithm: str, known: Sequence[Known]) -> Known:
    found = next((one for one in known if one.model_type == kind), None)
    if found is None:
        named = text if text == kind else f"{text} ({kind})"
        raise UserError(f"--model: {algorithm} has no example for {named}, but for {_listed(known)}; take one, or --algorithm grpo")
    return found


def _type_of_folder(folder: Path) -> str:
    """Raises:
    UserError: it is no pipeline, or one without an example.
    """
    from flow_factory.utils.model_index import INDEX, MODULAR, read_json

    if not (folder / INDEX).is_file():
        if (folder / MODULAR).is_file():
            raise UserError(f"--model: {folder} is a modular pipeline, {ELSE}")
        raise UserError(f"--model: {folder} has no {INDEX}; name the folder of a diffusers pipeline")
    made_for = str(read_json(folder / INDEX).get("_class_name"))
    kinds: Mapping[str, str] = {MODELS[name].pipeline.partition(":")[2]: name for name in reversed(list(MODELS))}
    if made_for not in kinds:
        raise UserError(f"--model: {folder} is a {made_for}, {ELSE}")
    return kinds[made_for]


def _type_of_name(text: str, known: Sequence[Known]) -> str | None:
    """The family whose longest name is part of a repository's name; None too if the rest of it is of another kind of model."""
    repository = plain(text.rpartition("/")[2])
    names = {plain(name): name for name in MODELS.table if name != "diffusers"}
    names |= {plain(alias): kind for alias, kind in MODELS.aliases.items()} | {plain(one.name): one.model_type for one in known}
    names |= {plain(DATED.sub("", one.checkpoint.rpartition("/")[2])): one.model_type for one in known if DATED.search(one.checkpoint)}
    name = max((name for name in names if name in repository and len(name) > 3), key=len, default="")
    other = any(word in repository and word not in name for word in OTHERS)
    return None if other else names.get(name)


def _near(text: str, known: Sequence[Known]) -> str:
    """Names of examples that are like the text, or some if none is."""
    names = {plain(name): one.name for one in reversed(known) for name in (one.model_type, one.checkpoint.rpartition("/")[2], one.name)}
    close = list(dict.fromkeys(names[name] for name in get_close_matches(plain(text.rpartition("/")[2]), list(names), 3 * NEAR, 0.5)))
    return f"near are {', '.join(close[:NEAR])}; --help lists all" if close else f"there are {_listed(known)}"


def _listed(known: Sequence[Known]) -> str:
    return ", ".join(one.name for one in known)
