"""Recipes: of an algorithm the paper's protocol and numbers, our settings and seeds, and what our runs reached; compared with a run's."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from flow_factory.config.base import Section, show
from flow_factory.config.text import read_foreign
from flow_factory.reporting.bootstrap import Estimate
from flow_factory.reporting.judged import Judged, ranges
from flow_factory.reporting.report import markdown_table
from flow_factory.utils.errors import UserError
from flow_factory.utils.registry import nearest

FOLDER = Path(__file__).parents[1] / "recipes"
INTRO = (
    "For each algorithm the protocol of its paper, numbers of it and where each was found, which for some is a page about the paper, our "
    "settings, and what our own runs reached. `ff-eval CHECKPOINT --compare NAME` puts a run beside a recipe. `ff-eval --recipes` prints "
    "this page, which is made from `flow_factory/recipes/*.yaml`; a file of your own works too."
)


class Number(Section):
    """A number of a paper."""

    metric: str = Field(description="what was measured")
    before: float | None = Field(None, description="of the base model")
    after: float = Field(description="of the trained model")
    source: str = Field(description="where it was found: abstract, table 3, ..., or a link")


class Paper(Section):
    """The protocol and numbers of a paper."""

    title: str = Field(description="its title")
    arxiv: str = Field(description="its number")
    protocol: str | None = Field(None, description="how the numbers were measured")
    numbers: list[Number] = Field([], description="its main results")
    claims: list[str] = Field([], description="statements without a number that could be repeated")


class RecipeProtocol(Section):
    """How our numbers were measured; the names are those of the protocol of `ff-eval`."""

    model: str = Field(description="base model")
    prompts: str = Field(description="sha256 of the prompts")
    rows: int = Field(description="number of prompts")
    seeds: list[int] = Field(description="seeds of each prompt's noise")
    steps: int = Field(description="denoising steps")
    guidance_scale: float = Field(description="guidance scale")
    height: int = Field(description="pixels")
    width: int = Field(description="pixels")


class Band(Section):
    """The results of our runs under one reward."""

    before: float = Field(description="mean of the base model")
    after: list[float] = Field(min_length=1, description="mean after each run, in the order of seeds")

    @property
    def ends(self) -> tuple[float, float]:
        return min(self.after), max(self.after)


class Ours(Section):
    """Our runs."""

    config: str = Field(description="the YAML of the runs")
    overrides: list[str] = Field([], description="keys set on the command line")
    seeds: list[int] = Field(description="train.seed of each run")
    protocol: RecipeProtocol = Field(description="how they were judged")
    rewards: dict[str, Band] = Field(description="results by reward")


class Recipe(Section):
    """A recipe file."""

    algorithm: str = Field(description="train.trainer_type")
    paper: Paper = Field(description="the paper")
    examples: list[str] = Field([], description="YAML files of the algorithm")
    ours: Ours | None = Field(None, description="our runs, if there are any")


def names() -> list[str]:
    """The names of the bundled recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """Loads a bundled recipe by its name, or a file.

    Raises:
        UserError: there is none, or it is not as `Recipe` says.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if path.parent == FOLDER and not path.is_file():
        raise UserError(f"no recipe {name!r}.{nearest(name, names())} There are {', '.join(names())}; or name a .yaml file")
    try:
        return Recipe.model_validate(read_foreign(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {key}: {first['msg']}, got {show(first['input'])}") from error


# -- beside a run -----------------------------------------------------------------------------------------------------------------------


def comparison(recipe: Recipe, found: Sequence[Judged], protocol: Mapping[str, Any]) -> str:
    """Markdown: a run's judged numbers beside a recipe's."""
    parts = [f"## Beside the recipe of {recipe.algorithm}", *_paper_lines(recipe)]
    if recipe.ours is None:
        return _joined([*parts, "There are no runs of ours to compare with."])
    ours, shared = recipe.ours, [one for one in found if one.reward in recipe.ours.rewards]
    if not shared:
        here = ", ".join(dict.fromkeys(one.reward for one in found))
        return _joined([*parts, f"The recipe has {', '.join(ours.rewards)}, and this evaluation {here}: nothing can be compared."])
    rows, others = [], list[str]()
    for one in shared:
        band, different = ours.rewards[one.reward], list(_differences(ours.protocol, protocol, one.dataset))
        low, high = band.ends
        others += [line for line in different if line not in others]
        word = "-" if one.weights == "base" else "other protocol" if different else verdict(one.mean, (low, high))
        mine = f"{one.mean.low:.3f} to {one.mean.high:.3f}"
        rows.append([one.reward, one.weights, f"{one.mean.mean:.3f}", mine, f"{band.before:.3f}", f"{low:.3f} to {high:.3f}", word])
    head = ["reward", "weights", "mean", "95 % interval", "recipe before", f"recipe after ({len(ours.seeds)} seeds)", "result"]
    parts.append(markdown_table(head, rows))
    if others:
        parts.append("The protocols differ, so the numbers do not compare:\n\n" + "\n".join(f"- {line}" for line in others))
    return _joined(parts)


def verdict(mean: Estimate, band: tuple[float, float]) -> str:
    """The position of a mean relative to the range of our runs."""
    low, high = band
    if low <= mean.mean <= high:
        return "within"
    side = "below" if mean.mean < low else "above"
    return f"{side}, interval reaches it" if mean.low <= high and mean.high >= low else side


def _differences(wanted: RecipeProtocol, protocol: Mapping[str, Any], dataset: str) -> Iterator[str]:
    data = protocol["data"][dataset]
    here = {key: data[key] for key in ("prompts", "rows", "steps", "guidance_scale", "height", "width")} | {"seeds": protocol["seeds"]}
    for key, value in here.items():
        if (other := getattr(wanted, key)) != value:
            shown = [ranges(v) if key == "seeds" else v[:12] if key == "prompts" else v for v in (value, other)]
            yield f"{key}: {shown[0]}, and {shown[1]} in the recipe"
    if Path(protocol["model"]).name != Path(wanted.model).name:
        yield f"model: {protocol['model']}, and {wanted.model} in the recipe"


# -- the page ---------------------------------------------------------------------------------------------------------------------------


def recipes_page() -> str:
    """All recipes of the program, as Markdown."""
    parts = ["# Recipes", INTRO]
    for name in names():
        recipe = load_recipe(name)
        parts += [f"## `{name}`", *_paper_lines(recipe), f"Examples: {', '.join(f'`{path}`' for path in recipe.examples)}."]
        parts += _our_lines(recipe.ours) if recipe.ours else ["There are no runs of ours yet."]
    return _joined(parts).removesuffix("\n")


def _paper_lines(recipe: Recipe) -> list[str]:
    paper = recipe.paper
    lines = [f"Paper: {paper.title} ([{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv}))."]
    lines += [f"Its protocol: {paper.protocol}."] if paper.protocol else []
    if paper.numbers:
        rows = [[n.metric, "-" if n.before is None else f"{n.before:g}", f"{n.after:g}", n.source] for n in paper.numbers]
        lines.append(markdown_table(["paper's metric", "before", "after", "found in"], rows))
    return lines + ([f"It says: {'; '.join(paper.claims)}."] if paper.claims else [])


def _our_lines(ours: Ours) -> list[str]:
    protocol, seeds = ours.protocol, ", ".join(map(str, ours.seeds))
    how = f"{protocol.rows} prompts (sha256 {protocol.prompts[:12]}) x seeds {ranges(protocol.seeds)}; {protocol.steps} steps"
    rows = [[name, f"{band.before:.3f}", ", ".join(f"{value:.3f}" for value in band.after)] for name, band in ours.rewards.items()]
    command = " ".join([f"ff-train {ours.config}", *ours.overrides])
    text = f"Our runs: `{command}` with `train.seed` {seeds}. "
    text += f"Protocol: {how}, guidance {protocol.guidance_scale:g}, {protocol.width} x {protocol.height} px."
    return [text, markdown_table(["reward", "before", "after, each run"], rows)]


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(parts) + "\n"
