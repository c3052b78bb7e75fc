"""The model card of a run: what was optimised and how it went, for the page of its weights on the hub."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCardData

from flow_factory import __version__
from flow_factory.checkpoints.lora_file import LORA_FILE, PEFT_CONFIG
from flow_factory.config import RunConfig, dump_config
from flow_factory.config.datasets import trained_on
from flow_factory.config.eval import pipeline_kwargs
from flow_factory.config.media_arguments import pipeline_of
from flow_factory.config.signature import SignatureError, parameters
from flow_factory.models import MODELS
from flow_factory.models.guiders import guiders_of
from flow_factory.reporting.curves import plain
from flow_factory.reporting.paired_gains import Comparison, compare
from flow_factory.reporting.report import markdown_table
from flow_factory.utils.counting import counted
from flow_factory.utils.hub import licence_of, looks_local
from flow_factory.utils.model_index import INDEX, MODULAR, modular_index, name_source

PICTURES = ("curves.png", "before_after.png")
CONFIG, CARD = "config.yaml", "README.md"
DTYPES = {"bf16": "torch.bfloat16", "fp16": "torch.float16", "no": "torch.float32"}


@dataclass(frozen=True)
class Published:
    """What is uploaded to the hub.

    Attributes:
        folder: with the weights; the card, the config and the pictures are put into it.
        run: the run's folder; None: nothing is known of how it went.
        checkpoint: its name in the run.
        repo: on the hub, owner/name; None where it is not known yet.
        prompts: a few of the data set.
        last: the epoch of the weights; None: not known.
    """

    config: RunConfig
    folder: Path
    run: Path | None
    checkpoint: str
    repo: str | None
    prompts: Sequence[str] = ()

    @property
    def last(self) -> int | None:
        found = re.fullmatch(r"epoch_(\d+)", self.checkpoint)
        return None if found is None else int(found[1])


def write_card(what: Published) -> Path:
    """Writes README.md, config.yaml and the run's pictures beside the weights; returns the card."""
    there = [] if what.run is None else [what.run / name for name in PICTURES]
    for picture in there:
        if picture.is_file():
            shutil.copyfile(picture, what.folder / picture.name)
    if what.repo is not None:
        name_source(what.folder, what.repo)
    if what.run is not None and (what.run / CONFIG).is_file():
        shutil.copyfile(what.run / CONFIG, what.folder / CONFIG)
    else:
        (what.folder / CONFIG).write_text(dump_config(what.config), "utf-8")
    card = what.folder / CARD
    card.write_text(model_card(what), "utf-8")
    return card


def model_card(what: Published) -> str:
    """Markdown with the hub's metadata at its head."""
    config, base = what.config, what.config.model.model_name_or_path
    lora = config.model.finetune_type == "lora" and not whole_in(what.folder)
    known, licence = not looks_local(base) and not Path(base).is_dir(), licence_of(base)
    data = ModelCardData(
        base_model=base if known else None, library_name="diffusers", license=licence,
        pipeline_tag=f"text-to-{MODELS[config.model.model_type].draws}",
        tags=["flow-factory", "diffusers", config.train.trainer_type, "reinforcement-learning", *(["lora"] if lora else [])],
        base_model_relation=("adapter" if lora else "finetune") if known else None,
    )  # fmt: skip
    kind = f"a LoRA of rank {config.model.lora_rank} for" if lora else "a fine-tuned"
    named = f"[{base}](https://huggingface.co/{base})" if known else f"`{Path(base).name}` (a folder)"
    unknown = f"The licence of the base model, which is not known here{' (see its page)' if known else ''}, applies"
    terms = f"The licence of the base model, `{licence}`, applies" if licence else unknown
    parts = [
        f"# {what.repo.partition('/')[2] if what.repo else (what.run or what.folder).name}",
        f"This is {kind} {named}, trained with `{config.train.trainer_type}` by Flow-Factory {__version__} (weights: {what.checkpoint}).",
        f"## How to load it\n\n```python\n{_loading(what, lora)}\n```",
        f"## What was optimised\n\n{_optimised(what)}",
        *_results(what),
        f"## Config\n\n[`{CONFIG}`]({CONFIG}) is the whole config of the run.",
        f"## Licence\n\n{terms}; the terms of the data set and of the reward models may too.",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _loading(what: Published, lora: bool) -> str:
    """Python that draws a picture, by what is in the folder."""
    config, here = what.config, what.repo or what.folder.name
    base, part = config.model.model_name_or_path, config.model.target_components[0]
    whole = whole_in(what.folder)
    modular = modular_index(what.folder if whole else Path(base)) is not None
    dtype = DTYPES[config.mixed_precision]
    names, load = _stock(here if whole else base, modular, dtype)
    files = sorted(file.name for file in what.folder.glob("*.safetensors"))
    if not lora and not whole:
        names = f"AutoModel, {names}"
        load = f'{part} = AutoModel.from_pretrained("{here}", subfolder="{part}", torch_dtype={dtype})\n{load}'
        load = f"{load}\npipe.update_components({part}={part})" if modular else f"{load[:-1]}, {part}={part})"
    elif LORA_FILE in files:
        load += f'\npipe.load_lora_weights("{here}")'
    elif (what.folder / PEFT_CONFIG).is_file():
        load = f'from peft import PeftModel\n\n{load}\npipe.{part} = PeftModel.from_pretrained(pipe.{part}, "{here}")'
    else:
        load += "".join(f'\npipe.load_lora_weights("{here}", weight_name="{name}")' for name in files)
    prompt = " ".join(what.prompts[0].split()).replace("```", "") if what.prompts else "a prompt of your own"
    return f"import torch\nfrom diffusers import {names}\n\n{load}\nprompt = {prompt!r}\n{_call(config)}"


def _call(config: RunConfig) -> str:
    """The evaluations' call as the stock pipeline takes it, after a line for each guider; media are the reader's variables."""
    family, given = MODELS[config.model.model_type], pipeline_kwargs(config.eval)
    scale = given.pop("guidance_scale")
    try:
        path = pipeline_of(config)
        takes, guiders = {p.name for p in parameters(path, "__call__")}, guiders_of(path)
    except SignatureError:  # `model_type: diffusers`, and its checkpoint is not on this machine
        takes, guiders = {*given, family.guidance}, []
    arguments = {"num_inference_steps": config.eval.num_inference_steps, family.guidance: scale} | given
    if family.pipeline:  # FLUX.1 Kontext scales height and width to this area
        arguments["max_area"] = config.eval.height * config.eval.width
    media = [name for name, (least, _) in (("image", family.images), ("video", family.videos)) if least]
    words = [f"{name}={name}" for name in ("prompt", *media, *family.needs)]
    words += [f"{name}={value!r}" for name, value in arguments.items() if name in {*takes, "num_inference_steps"}]
    lines = [] if family.guidance in takes else [_scaled(name, scale) for name in guiders]
    return "\n".join([*lines, f"result = pipe({', '.join(words)})"])


def _scaled(guider: str, scale: float) -> str:
    """The line that sets a guider of the pipeline as `guiding` does."""
    return f"if pipe.{guider} is not None:\n    pipe.{guider}.{'disable()' if scale == 1 else f'guidance_scale = {scale!r}'}"


def whole_in(folder: Path) -> bool:
    """Whether a folder has a whole pipeline."""
    return any((folder / name).is_file() for name in (INDEX, MODULAR))


def _stock(place: str, modular: bool, dtype: str) -> tuple[str, str]:
    """What to import from diffusers to load a pipeline, and the lines that do it."""
    if modular:
        return "ModularPipeline", f'pipe = ModularPipeline.from_pretrained("{place}")\npipe.load_components(torch_dtype={dtype})'
    return "DiffusionPipeline", f'pipe = DiffusionPipeline.from_pretrained("{place}", torch_dtype={dtype})'


def _optimised(what: Published) -> str:
    config, train = what.config, what.config.train
    rows = [(reward.name, f"`{reward.reward_model}`", f"{reward.weight}") for reward in config.rewards]
    held = [reward for reward in config.evaluated_by if reward.name not in {r.name for r in config.rewards if r.weight != 0}]
    rows += [(reward.name, f"`{reward.reward_model}`", "held out") for reward in held]
    lines = [markdown_table(("reward", "model", "weight"), rows)] if rows else []
    many = f"{train.unique_sample_num_per_epoch} prompts an epoch, {train.group_size} samples each"
    done = f"{counted(what.last, 'epoch')}, " if what.last is not None else ""
    data = [Path(dataset.config.data.dataset_dir).name for dataset in trained_on(config)]
    lines.append(f"{done}{many}; learning rate {train.learning_rate:g}; data: {', '.join(f'`{name}`' for name in data)}.")
    if what.prompts:
        lines.append("Prompts of the data:\n\n" + "\n".join(f"- {_code(prompt)}" for prompt in what.prompts))
    return "\n\n".join(lines)


def _results(what: Published) -> list[str]:
    """Curves, the table of evaluations with its protocol, and pictures, as far as the run has them."""
    if what.run is None or not (what.run / "metrics.jsonl").is_file():
        return []
    parts = [f"## Curves\n\n![curves]({PICTURES[0]})"] if (what.folder / PICTURES[0]).is_file() else []
    found = compare(what.run, until=what.last)
    names = [name for name in sorted(found.after) if re.fullmatch(r"(.+/)?(reward_.+_mean|loss)", name)]
    if names:
        ends = {n: f"{low:+.3f} to {high:+.3f}" for n, (low, high) in found.intervals.items()}
        rows = [(plain(n), _number(found.before.get(n)), _number(found.after[n]), ends.get(n, "-")) for n in names]
        table = markdown_table(("evaluation", "before", "after", "95 % interval of the change"), rows)
        parts.append(f"## Evaluation\n\n{table}\n\n{_protocol(what.config, found)}")
    if (what.folder / PICTURES[1]).is_file():
        parts.append(f"## Before and after\n\nThe same prompts and noise.\n\n![before and after]({PICTURES[1]})")
    return parts


def _protocol(config: RunConfig, found: Comparison) -> str:
    section = config.eval
    rows = sum(int(value) for name, value in found.after.items() if re.fullmatch(r"(.+/)?rows", name))
    steps = f"{section.num_inference_steps} steps, guidance {section.guidance_scale:g}, {section.width} x {section.height} px"
    first, last = found.steps or (0, 0)
    note = f" {found.note[:1].upper()}{found.note[1:]}." if found.note else ""
    return (
        f"Protocol: {rows} test prompts, samples of each: {section.group_size}, always from the same noise (seed {config.eval_seed}), "
        f"drawn by the stock diffusers pipeline in {steps}; before: epoch {first}, after: epoch {last}.{note}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _code(text: str) -> str:
    """Markdown code, so that a page shows the text unchanged."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"
