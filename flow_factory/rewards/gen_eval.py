"""GenEval (arXiv 2310.11513): are the asked objects there, as many, of the colours, where they should be?

Objects by Mask2Former on COCO (`facebook/mask2former-swin-small-coco-instance`), colours by CLIP ViT-L/14. The code of GenEval is MIT. Its
own detector is another training of the same architecture (mmdetection's), so that scores are near those published, not the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, normalize, pad
from transformers import Mask2FormerForUniversalSegmentation

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.base import PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.clip import WEIGHTS, CLIPScorer
from flow_factory.rewards.media import fold, normalised, unfold
from flow_factory.rewards.sources import FILES, model_of, named, require_folder
from flow_factory.utils.errors import UserError

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
KEY = "detector_name_or_path"
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PHRASES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
THRESHOLD, COUNTING_THRESHOLD, POSITION_THRESHOLD, MOST = 0.3, 0.9, 0.1, 16
"""Of a detection, where objects are counted, of a distance in sizes of the objects, and how many of a class are looked at."""
SHORTER, LONGER, STEP = 800, 1333, 32
"""Pixels of the sides that the detector sees, and what they are padded to a multiple of."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ALIASES = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard", "motorbike": "motorcycle"}
"""GenEval's name -> COCO's."""
POSITIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Detection:
    """One detected object: its box (left, upper, right, lower) in pixels, its mask (H, W), and how sure the detector is."""

    box: tuple[float, float, float, float]
    mask: np.ndarray
    score: float


def plain(name: str) -> str:
    """A class's name as COCO has it, whatever the spelling."""
    name = name.lower().replace("-", " ").replace("_", " ").strip()
    return ALIASES.get(name, name)


def where(a: Detection, b: Detection) -> set[str]:
    """On which sides of b the object a lies: its distance less a tenth of both sizes, in parts of the whole distance."""
    (ax, ay), (aw, ah) = _middle(a)
    (bx, by), (bw, bh) = _middle(b)
    off = np.array([ax - bx, ay - by])
    less = np.maximum(np.abs(off) - POSITION_THRESHOLD * np.array([aw + bw, ah + bh]), 0) * np.sign(off)
    if (np.abs(less) < 1e-3).all():
        return set()
    dx, dy = less / np.linalg.norm(off)
    return {side for side, far in zip(POSITIONS, (-dx, dx, -dy, dy), strict=True) if far > 0.5}


def _middle(thing: Detection) -> tuple[tuple[float, float], tuple[float, float]]:
    x0, y0, x1, y1 = thing.box
    return ((x0 + x1) / 2, (y0 + y1) / 2), (abs(x1 - x0), abs(y1 - y0))


def found_in(classes: Tensor, masks: Tensor, names: Sequence[str], width: int, height: int) -> dict[str, list[Detection]]:
    """All detections of one picture, by class, the surest first.

    Args:
        classes: (queries, classes + 1) logits, the last of "no object".
        masks: (queries, h, w) logits over the picture alone.
        names: of the classes.
    """
    scores = classes.softmax(-1)[:, :-1]
    best, place = scores.flatten().topk(min(100, scores.numel()))
    large = interpolate(masks[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    found: dict[str, list[Detection]] = {}
    for score, where_ in zip(best.tolist(), place.tolist(), strict=True):
        query, label = divmod(where_, scores.shape[1])
        inside = large[query] > 0
        if score > THRESHOLD and inside.any():
            sure = score * large[query][inside].sigmoid().mean().item()
            ys, xs = (axis.cpu().numpy() for axis in inside.nonzero(as_tuple=True))
            box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
            found.setdefault(plain(names[label]), []).append(Detection(box, inside.cpu().numpy(), sure))
    return {name: sorted(things, key=lambda thing: -thing.score) for name, things in found.items()}


class GenEvalReward(PointwiseRewardModel):
    """1 where all that `include` asks for is there and nothing of `exclude`, else 0; `partial: true` gives the share of what is right.

    Columns, as in GenEval's own file: `include`, a list of {class, count, color, position: [side, index of another]}; `exclude`, a list
    of {class, count}: fewer than so many; `tag`: `counting` takes only detections above 0.9, all others above 0.3. Partial: the mean over
    `include` of 1 - |asked - found| / asked, the share of the asked colour, and the position, each counted once. A video's is the mean of
    its frames.
    """

    required_fields = ("prompt", "image", "video", "include")
    extra_keys = ("model_name_or_path", "processor_name_or_path", "detector_name_or_path", "partial")
    loads_weights = True
    changes_inputs = False
    no_gradient = "its score is a count of detected objects"

    @classmethod
    def require_files(cls, config: RewardArguments, now: bool) -> None:
        CLIPScorer.require(config, WEIGHTS, now=now)
        require_folder(config, KEY, named(config, KEY, DETECTOR), FILES["model"], now)

    @classmethod
    def row_check(cls, config: RewardArguments) -> Any:
        def check(row: Any) -> None:
            for key in ("include", "exclude"):
                if (why := _wrong(row.columns.get(key) or [], key)) is not None:
                    raise UserError(f"reward {config.name!r}: row {row.id} ({row.source}): {key}: {why}")

        return check

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        self.clip = CLIPScorer(config, self.device, WEIGHTS)
        name = named(config, KEY, DETECTOR)
        self.require_files(config, now=True)
        self.model = model_of(Mask2FormerForUniversalSegmentation, name, config, "detector").to(self.device, config.dtype)
        labels = self.model.config.id2label
        self.labels = [labels[k] for k in range(len(labels))]
        self.phrases: dict[str, Tensor] = {}

    @torch.no_grad()
    def detect(self, image: Image.Image) -> dict[str, list[Detection]]:
        """All objects of a picture, seen alone: by the class, the surest first."""
        image = image.convert("RGB")
        scale = min(SHORTER / min(image.size), LONGER / max(image.size))
        wide, high = (max(1, round(side * scale)) for side in image.size)
        pixels = normalised(image.resize((wide, high), Image.Resampling.BILINEAR), MEAN, STD)
        pixels = pad(pixels, (0, -wide % STEP, 0, -high % STEP))[None]
        output = self.model(pixel_values=pixels.to(self.device, self.config.dtype))
        masks = interpolate(output.masks_queries_logits.float(), size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        return found_in(output.class_queries_logits[0].float(), masks[0, :, :high, :wide], self.labels, *image.size)

    @torch.no_grad()
    def colors(self, image: Image.Image, things: Sequence[Detection], name: str) -> list[str]:
        """The colour of each object: cut out, the rest of its box grey, against three phrases a colour."""
        if name not in self.phrases:
            texts = [phrase.format(color=color, name=name) for color in COLORS for phrase in PHRASES]
            self.phrases[name] = normalize(self.clip.texts(texts).unflatten(0, (len(COLORS), len(PHRASES))).mean(1), dim=-1)
        grey = Image.new("RGB", image.size, "#999")
        alone = [Image.composite(image, grey, Image.fromarray(t.mask)).crop(t.box) for t in things]
        return [COLORS[k] for k in (self.clip.pictures(alone) @ self.phrases[name].T).argmax(1).tolist()] if things else []

    def judge(
        self, image: Image.Image, include: Sequence[Mapping[str, Any]], exclude: Sequence[Mapping[str, Any]], tag: str | None
    ) -> tuple[float, float]:
        """(strict, partial) of one picture."""
        image = image.convert("RGB")
        least = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
        there = {name: [t for t in things if t.score > least][:MOST] for name, things in self.detect(image).items()}
        right = True
        parts: list[float] = []
        matched: list[list[Detection] | None] = []
        for wanted in include:
            name, count = plain(wanted["class"]), wanted["count"]
            all_of_it = there.get(name, [])
            found, fits = all_of_it[:count], len(all_of_it) >= count
            parts.append(max(0.0, 1 - abs(count - len(all_of_it)) / count))
            if "color" in wanted:
                share = self.colors(image, found, wanted["class"]).count(wanted["color"]) / count
                parts.append(share)
                fits &= share == 1
            if "position" in wanted:
                side, other = wanted["position"]
                target = matched[other] if other < len(matched) else None
                holds = bool(target and found) and all(side in where(a, b) for a in found for b in target or ())
                parts.append(float(holds))
                fits &= holds
            matched.append(found if fits else None)
            right &= fits
        right &= all(len(there.get(plain(unwanted["class"]), [])) < unwanted["count"] for unwanted in exclude)
        return float(right), 1.0 if right else sum(parts) / len(parts) if parts else math.nan

    def __call__(
        self,
        prompt: list[str],
        include: list[Any],
        image: list[Image.Image] | None = None,
        video: list[list[Image.Image]] | None = None,
        exclude: list[Any] | None = None,
        tag: list[str | None] | None = None,
    ) -> RewardModelOutput:
        pictures, counts = unfold(image, video)
        n = len(prompt)
        rows = list(zip(include, exclude or [None] * n, tag or [None] * n, counts, strict=True))
        tasks = [(wanted, unwanted or [], kind) for wanted, unwanted, kind, count in rows for _ in range(count)]
        both = torch.tensor([self.judge(picture, *row) for picture, row in zip(pictures, tasks, strict=True)], dtype=torch.float32)
        strict, partial = (fold(column, counts) for column in both.unbind(1))
        if self.config.extra_kwargs.get("partial", False):
            return RewardModelOutput(partial, {"strict": strict.tolist()})
        return RewardModelOutput(strict, {"partial": partial.tolist()})


def _wrong(objects: Any, key: str) -> str | None:
    """Why a row's list is none that GenEval can judge."""
    if not isinstance(objects, list) or not all(isinstance(one, Mapping) and isinstance(one.get("class"), str) for one in objects):
        return "wants a list of mappings with class and count"
    for k, one in enumerate(objects):
        if isinstance(one.get("count"), bool) or not isinstance(one.get("count"), int) or one["count"] < 1:
            return f"{one['class']!r} has the count {one.get('count')!r}; write a number of at least 1"
        if one.get("color", COLORS[0]) not in COLORS:
            return f"{one['class']!r} has the color {one['color']!r}; GenEval knows {', '.join(COLORS)}"
        position = one.get("position")
        if "position" in one and not (
            isinstance(position, list) and len(position) == 2 and position[0] in POSITIONS and position[1] in range(k)
        ):
            return f"{one['class']!r} has the position {position!r}; write [side, index of an earlier object], of {', '.join(POSITIONS)}"
    return None if objects or key == "exclude" else "is empty"
