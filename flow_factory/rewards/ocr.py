"""Whether the text that a prompt asks for is there to read: PP-OCRv5 (Apache-2.0) on pictures, and edit distance to the target.

Weights `PaddlePaddle/PP-OCRv5_server_det_safetensors` and `PaddlePaddle/PP-OCRv5_server_rec_safetensors`; PP-OCRv6 and the mobile ones
load too. One recogniser reads simplified and traditional Chinese, Japanese and English; others, other languages.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub import hf_hub_download
from torch import Tensor, tensor
from transformers import AutoModelForObjectDetection, AutoModelForTextRecognition

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.base import PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.media import fold, unfold
from flow_factory.rewards.sources import FILES, model_of, named, require_folder
from flow_factory.rewards.text_reader import TextReader
from flow_factory.types import Row
from flow_factory.utils.errors import UserError, file_errors
from flow_factory.utils.hub import unreachable

KEYS = ("detector_name_or_path", "recognizer_name_or_path")
PUBLISHED = ("PaddlePaddle/PP-OCRv5_server_det_safetensors", "PaddlePaddle/PP-OCRv5_server_rec_safetensors")
QUOTED = re.compile(r'"([^"]*)"|\u201c([^\u201d]*)\u201d')


def plain(text: str) -> str:
    """Compatible forms made one (NFKC), small letters, no spaces."""
    return "".join(unicodedata.normalize("NFKC", text).lower().split())


def distance(a: str, b: str) -> int:
    """Levenshtein's: the fewest letters to add, drop or change."""
    row = list(range(len(b) + 1))
    for k, letter in enumerate(a, 1):
        before, row[0] = row[0], k
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != other))
    return row[-1]


def edit(target: str, read: str) -> float:
    """1 where the target is part of what is read, else 1 - min(distance, n) / n of the target's n letters (DDPO's and Flow-GRPO's rule)."""
    wanted, there = plain(target), plain(read)
    return 1.0 if wanted in there else 1 - min(distance(there, wanted), len(wanted)) / len(wanted)


def contains(target: str, read: str) -> float:
    """1 where the target is part of what is read, else 0."""
    return float(plain(target) in plain(read))


def words(target: str, read: str) -> float:
    """The share of the target's words that are there as words, each as often as asked."""
    wanted, there = (Counter(unicodedata.normalize("NFKC", text).lower().split()) for text in (target, read))
    return (wanted & there).total() / wanted.total()


METRICS: dict[str, Callable[[str, str], float]] = {"edit": edit, "contains": contains, "words": words}


def targets(prompt: str, given: Any = None) -> list[str]:
    """The texts that a row asks for: what its column gives (a text or a list of them), else what its prompt has in double quotes."""
    found = [a or b for a, b in QUOTED.findall(prompt)] if given is None else [given] if isinstance(given, str) else given
    return [text for text in found if isinstance(text, str) and plain(text)] if isinstance(found, list) else []


class OCRReward(PointwiseRewardModel):
    """How much of the asked text is there to read, 0 to 1; the mean over a row's targets, and over all frames of a video.

    The target is what the prompt has in double quotes, or with `column: NAME` the data set's column of that name, a text or a list.
    `metric`: `edit`, `contains` or `words`. `by: whole` compares with all that is read, `by: line` with the line that fits best.
    """

    required_fields = ("prompt", "image", "video")
    extra_keys = ("detector_name_or_path", "recognizer_name_or_path", "column", "metric", "by")
    loads_weights = True
    changes_inputs = False
    no_gradient = "it reads text"

    @classmethod
    def require_files(cls, config: RewardArguments, now: bool) -> None:
        for key, allowed in (("metric", tuple(METRICS)), ("by", ("whole", "line"))):
            if (value := config.extra_kwargs.get(key, allowed[0])) not in allowed:
                raise UserError(f"reward {config.name!r}: {key}: wants {' or '.join(allowed)}, got {value!r}")
        for key, name in zip(KEYS, PUBLISHED, strict=True):
            require_folder(config, key, named(config, key, name), FILES["model"], now)

    @classmethod
    def row_check(cls, config: RewardArguments) -> Callable[[Row], None]:
        column = config.extra_kwargs.get("column")
        where = f"its column {column!r}" if column else "double quotes in its prompt"

        def check(row: Row) -> None:
            if not targets(row.prompt, row.columns.get(column) or "" if column else None):
                raise UserError(f"reward {config.name!r} needs a text to read in {where}, and row {row.id} ({row.source}) has none")

        return check

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        self.require_files(config, now=True)
        detector, recogniser = (named(config, key, name) for key, name in zip(KEYS, PUBLISHED, strict=True))
        found = model_of(AutoModelForObjectDetection, detector, config, "text detector")
        read = model_of(AutoModelForTextRecognition, recogniser, config, "text recogniser")
        characters = _characters(config, recogniser, read.config.head_out_channels)
        self.reader = TextReader(found, read, characters, self.device, config.dtype)
        self.metric = METRICS[config.extra_kwargs.get("metric", "edit")]
        self.column, self.by_line = config.extra_kwargs.get("column"), config.extra_kwargs.get("by", "whole") == "line"

    def score(self, targets: Sequence[str], lines: Sequence[str]) -> float:
        """Of one picture: the mean over its targets."""
        if not targets:
            return float("nan")
        read = list(lines) if self.by_line else [" ".join(lines)]
        return sum(max((self.metric(target, one) for one in read), default=0.0) for target in targets) / len(targets)

    def __call__(self, prompt: list[str], image: list | None = None, video: list | None = None, **columns: Any) -> RewardModelOutput:
        pictures, counts = unfold(image, video)
        given = [text or "" for text in columns.get(self.column, [""] * len(prompt))] if self.column else [None] * len(prompt)
        wanted = [targets(p, g) for p, g, count in zip(prompt, given, counts, strict=True) for _ in range(count)]
        scores: Tensor = tensor([self.score(a, self.reader.read(p)) for a, p in zip(wanted, pictures, strict=True)])
        return RewardModelOutput(fold(scores, counts), {"error": "" if all(wanted) else "a prompt without a text to read"})


def _characters(config: RewardArguments, name: str, count: int) -> list[str]:
    """The recogniser's characters, from its preprocessor_config.json.

    Raises:
        UserError: it has another number of them than the network.
    """
    where, file = f"reward {config.name!r}: {KEYS[1]}", "preprocessor_config.json"
    with file_errors(where, name, f"the folder must have a {file}"):
        folder = Path(name).expanduser()
        path = folder / file if folder.is_dir() else Path(hf_hub_download(name, file, local_files_only=unreachable() is not None))
        try:
            characters = json.loads(path.read_bytes()).get("character_list")
        except (ValueError, AttributeError) as error:
            raise UserError(f"{where}: {path} is not a JSON object; download it again") from error
    if not isinstance(characters, list) or len(characters) != count or not all(isinstance(c, str) for c in characters):
        raise UserError(f"{where}: {path} has no character_list of the network's {count} characters")
    return characters
