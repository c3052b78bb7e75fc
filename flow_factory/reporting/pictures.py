"""Draws samples for people: contact sheets with prompts and rewards, pairs before and after training, and clips as animations."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flow_factory.types import Clip, Sample

SMALLEST, FRAME = 160, 112
"""A picture, and a frame of a clip, is shown at least so wide and its longer side at most twice as long."""
FRAMES, GAP = 4, 2
"""The number of frames of a clip in a row, and the pixels between them."""
ANIMATED = 320
"""Longer side of an animation."""
WIDEST = 2000
MARGIN, LINE, TEXT = 14, 17, 13
INK, FAINT, RULE, PAPER = "#1f2328", "#59636e", "#d1d9e0", "#ffffff"
ROSE, FELL, SAME = "#1a7f37", "#cf222e", "#6e7781"
FONTS = ("NotoSansCJK-Regular.ttc", "PingFang.ttc", "msyh.ttc", "DejaVuSans.ttf")
"""Tried in turn: prompts may be Chinese, which the last resort, the font inside Pillow, cannot write."""
MOST_LINES = 4
CHANGED = ("better", "worse")


def still(media: Any) -> Image.Image:
    """One RGB picture of a sample at the size at which it is shown: the picture itself, or a clip's `excerpt` in a row."""
    if not isinstance(media, Clip):
        return _fit(media.convert("RGB"), SMALLEST)
    frames = [_fit(frame.convert("RGB"), FRAME) for frame in excerpt(media).frames]
    width, height = frames[0].size
    row = Image.new("RGB", (len(frames) * (width + GAP) - GAP, height), PAPER)
    for k, frame in enumerate(frames):
        row.paste(frame, (k * (width + GAP), 0))
    return row


def beside_conditions(sample: Sample, picture: Image.Image, top: int = 0) -> Image.Image:
    """The picture, with the sample's condition pictures in a column at its left, `top` pixels below its upper edge."""
    given = [_fit(one.convert("RGB"), FRAME) for one in sample.conditions]
    if not given:
        return picture
    width, height = max(one.width for one in given), top + sum(one.height + GAP for one in given)
    whole = Image.new("RGB", (width + 2 * GAP + picture.width, max(height, picture.height)), PAPER)
    for k, one in enumerate(given):
        whole.paste(one, (0, top + sum(other.height + GAP for other in given[:k])))
    whole.paste(picture, (width + 2 * GAP, 0))
    return whole


def excerpt(clip: Clip) -> Clip:
    """A clip's first frame, its last and two between, evenly spaced, over the same time and without sound; its own excerpt is itself."""
    chosen = excerpted(clip)
    return Clip([clip.frames[k] for k in chosen], clip.fps * len(chosen) / len(clip.frames))


def excerpted(clip: Clip) -> list[int]:
    """The numbers of the frames that an `excerpt` has."""
    return sorted({round(k) for k in np.linspace(0, len(clip.frames) - 1, FRAMES)})


def animation(clip: Clip) -> BytesIO:
    """The clip as a GIF that starts over, of 256 colours a frame, without sound.

    A frame lasts whole hundredths of a second, rounded so that the rest is not lost; of more than 50 frames a second some are left out.
    """
    every = math.ceil(clip.fps / 50)  # browsers play still shorter frames slowly
    frames = [reduced(frame.convert("RGB"), ANIMATED) for frame in clip.frames[::every]]
    ends = [10 * round(100 * k * every / clip.fps) for k in range(len(frames) + 1)]
    file = BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=[b - a for a, b in pairwise(ends)], loop=0)
    file.seek(0)
    return file


def caption(sample: Sample) -> str:
    """The prompt and the scores in one line."""
    return " | ".join([sample.prompt, *(f"{name}={_score(value)}" for name, value in sample.rewards.items())])


def contact_sheet(samples: Sequence[Sample], columns: int = 8) -> Image.Image:
    """Every sample's `still`, and under it the prompt, wrapped, and the rewards; at most `columns` in a row, fewer where they are wide."""
    pictures = [beside_conditions(s, still(s.media)) for s in samples]
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    texts = [[(line, INK) for line in _wrap(s.prompt, width)] + _scores(s, width) for s in samples]
    cells = []
    for picture, text in zip(pictures, texts, strict=True):
        cell = Image.new("RGB", (width, height + 6 + LINE * max(map(len, texts))), PAPER)
        cell.paste(picture, ((width - picture.width) // 2, height - picture.height))
        _write(cell, text, top=height + 6)
        cells.append(cell)
    return _tile(cells, columns, gap=MARGIN if isinstance(samples[0].media, Image.Image) else 3 * MARGIN)


def before_after_sheet(
    before: Sequence[Sample], after: Sequence[Sample], columns: int = 4, weights: Mapping[str, float] | None = None, most: int = 24
) -> Image.Image:
    """Each prompt's picture before and after, side by side; the frame of the second says whether the rewards rose or fell together.

    Together means their sum under `weights`, by default 1 each. Those that changed come first, better and worse as they stand among the
    rows; more than `most` are left out, and the title counts all. Under the pictures stands each reward's own change; above all, the mean.
    A clip's rows of frames stand one below the other, so that frames of one time do.

    Raises:
        ValueError: the two are not samples of the same prompts in the same order.
    """
    if [s.prompt for s in before] != [s.prompt for s in after]:
        raise ValueError("before and after must be samples of the same prompts in the same order")
    weights = weights or {name: 1.0 for s in after for name in s.rewards}
    verdicts = [
        _verdict(sum(w * (_reward(a, name) - _reward(b, name)) for name, w in weights.items())) for b, a in zip(before, after, strict=True)
    ]
    order = sorted(range(len(after)), key=lambda k: (verdicts[k][0] not in CHANGED, k))[:most]
    cells = [beside_conditions(after[k], _pair(before[k], after[k], verdicts[k]), LINE) for k in order]
    height = max(c.height for c in cells)
    sheet = _tile([_padded(c, height) for c in cells], columns, gap=3 * MARGIN)
    shown = f"   |   {len(order)} shown, those that changed first" if len(order) < len(after) else ""
    return _titled(sheet, _headline(before, after, [word for word, _ in verdicts]) + shown)


def _headline(before: Sequence[Sample], after: Sequence[Sample], words: list[str]) -> str:
    counts = ", ".join(f"{words.count(word)} {word}" for word in ("better", "worse", "same", "not scored") if word in words)
    pairs = [(name, [[_reward(s, name) for s in group] for group in (before, after)]) for name in after[0].rewards]
    means = [f"{name} {_score(float(np.nanmean(b)))} → {_score(float(np.nanmean(a)))}" for name, (b, a) in pairs if _known(a) and _known(b)]
    return f"{len(words)} prompts: {counts}" + "".join(f"   |   mean {m}" for m in means)


def _pair(before: Sample, after: Sample, verdict: tuple[str, str]) -> Image.Image:
    pictures = [still(s.media) for s in (before, after)]
    frame, gap = 4, 8
    width, height = max(p.width for p in pictures) + 2 * frame, max(p.height for p in pictures) + 2 * frame
    right, down = (0, LINE + height + gap) if isinstance(after.media, Clip) else (width + gap, 0)
    bottom = LINE + height + down
    text = [(line, INK) for line in _wrap(after.prompt, width + right)]
    for name, value in after.rewards.items():
        change = value - _reward(before, name)
        shown = f"{name} {_score(_reward(before, name))} → {_score(value)}" + ("" if math.isnan(change) else f" ({change:+.2f})")
        text += [(line, _verdict(change)[1]) for line in _wrap(shown, width + right)]
    cell = Image.new("RGB", (width + right, bottom + 6 + LINE * len(text)), PAPER)
    looks = ("before", FAINT, RULE), (f"after: {verdict[0]}", verdict[1], verdict[1])
    for k, (picture, (label, ink, edge)) in enumerate(zip(pictures, looks, strict=True)):
        left, top = k * right, k * down + LINE
        _write(cell, [(label, ink)], top - LINE, left)
        ImageDraw.Draw(cell).rectangle((left, top, left + picture.width + 2 * frame - 1, top + picture.height + 2 * frame - 1), edge)
        cell.paste(picture, (left + frame, top + frame))
    _write(cell, text, top=bottom + 6)
    return cell


def _reward(sample: Sample, name: str) -> float:
    return sample.rewards.get(name, math.nan)


def _known(scores: list[float]) -> bool:
    return not all(map(math.isnan, scores))


def _verdict(change: float) -> tuple[str, str]:
    """Word and colour of a change of the reward; what two decimals do not show is none."""
    if math.isnan(change):
        return "not scored", SAME
    if abs(change) < 0.005:
        return "same", SAME
    return ("better", ROSE) if change > 0 else ("worse", FELL)


def _fit(picture: Image.Image, least: int) -> Image.Image:
    """Pictures smaller than `least` enlarged by a whole factor, pixel by pixel; those larger than twice that reduced; the aspect kept."""
    if picture.width < least and picture.height < least:
        factor = math.ceil(least / picture.width)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return reduced(picture, 2 * least)


def reduced(picture: Image.Image, most: int) -> Image.Image:
    """The picture, reduced so that its longer side has at most `most` pixels."""
    shrink = min(1.0, most / max(picture.size))
    size = (max(1, round(picture.width * shrink)), max(1, round(picture.height * shrink)))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)


def _tile(cells: list[Image.Image], columns: int, gap: int = MARGIN) -> Image.Image:
    """Equal cells in rows of at most `columns` and about WIDEST pixels, MARGIN below each, `gap` between neighbours."""
    columns = max(1, min(columns, len(cells), WIDEST // (cells[0].width + gap)))
    width, height = cells[0].width + gap, cells[0].height + MARGIN
    sheet = Image.new("RGB", (columns * width - gap + 2 * MARGIN, math.ceil(len(cells) / columns) * height + MARGIN), PAPER)
    for k, cell in enumerate(cells):
        sheet.paste(cell, (MARGIN + k % columns * width, MARGIN + k // columns * height))
    return sheet


def _padded(image: Image.Image, height: int) -> Image.Image:
    taller = Image.new("RGB", (image.width, height), PAPER)
    taller.paste(image, (0, 0))
    return taller


def _titled(sheet: Image.Image, title: str) -> Image.Image:
    whole = Image.new("RGB", (sheet.width, sheet.height + 2 * LINE), PAPER)
    whole.paste(sheet, (0, 2 * LINE))
    ImageDraw.Draw(whole).text((MARGIN, 10), title, INK, _font(TEXT + 2))
    return whole


def _scores(sample: Sample, width: int) -> list[tuple[str, str]]:
    return [(line, FAINT) for name, value in sample.rewards.items() for line in _wrap(f"{name} {_score(value)}", width)]


def _score(value: float) -> str:
    return "no score" if math.isnan(value) else f"{value:.2f}"


def _write(image: Image.Image, lines: list[tuple[str, str]], top: int, left: int = 0) -> None:
    draw = ImageDraw.Draw(image)
    for k, (line, color) in enumerate(lines):
        draw.text((left, top + k * LINE), line, color, _font(TEXT))


def _wrap(text: str, width: int) -> list[str]:
    """Lines no wider than `width` pixels, broken at spaces or, in a word that is too long, anywhere; after MOST_LINES an ellipsis."""
    font, lines, line = _font(TEXT), [], ""
    for char in " ".join(text.split()):
        line += char
        if font.getlength(line) > width:
            cut = line.rfind(" ") if " " in line.strip() else len(line) - 1
            lines.append(line[:cut])
            line = line[cut:].lstrip()
    lines.append(line)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1][:-1] + "…"]
    return lines


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
