"""How a data row becomes call arguments: its encodings, its pictures and videos, and what the call says of guidance."""

from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from flow_factory.models.family import Family
from flow_factory.models.guiders import GUIDER
from flow_factory.types import Cond, Row
from flow_factory.utils.errors import UserError


class RowEncoding(Family):
    """The part of an adapter that encodes rows. A family writes `embed`; the rest has defaults that serve most."""

    pipe: Any
    parameters: Mapping[str, Parameter]
    """Of the pipeline's `__call__`."""
    negatives: tuple[tuple[str, str], Cond] | None = None
    """The last negative prompt with what it depends on, and its embeddings."""

    def encode(self, row: Row, call: Mapping[str, Any]) -> Cond:
        """Call arguments of one row, tensors with a leading dimension of 1; runs the encoders.

        Args:
            call: the section's call arguments (`max_sequence_length`, ...).
        """
        cond = self.conditions(row, call)
        pictures = cond.get("image")
        cond |= self.embed(row.prompt, pictures, call)
        if self.guided(call):
            text = self.negative if row.negative_prompt is None else row.negative_prompt
            cond |= {f"negative_{k}": v for k, v in self._negative(text, pictures, call).items()}
        return cond

    def _negative(self, text: str, pictures: Any, call: Mapping[str, Any]) -> Cond:
        """A negative prompt's embeddings; the last are kept, since the rows of a data set mostly have the same."""
        if pictures is not None:
            return self.embed(text, pictures, call)
        key = (text, repr(self.encoded_by(call)))
        if self.negatives is None or self.negatives[0] != key:
            self.negatives = (key, self.embed(text, None, call))
        return self.negatives[1]

    def embed(self, text: str, pictures: Any, call: Mapping[str, Any]) -> Cond:
        """A prompt's embeddings under the names that `__call__` has for them; those of a negative prompt get `negative_` before.

        Args:
            pictures: what `conditions` has under `image`, if anything.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how a prompt is encoded: it has no `embed`")

    def conditions(self, row: Row, call: Mapping[str, Any]) -> Cond:
        """The row's images and videos under the names that `__call__` has for them."""
        from flow_factory.data.media import open_image, open_video

        cond: Cond = {}
        if row.images:
            cond["image"] = [open_image(path, row.source) for path in row.images]
        if row.videos:
            cond["video"] = open_video(row.videos[0], row.source).frames
        sizes = {path: (*picture.size, 1) for path, picture in zip(row.images, cond.get("image", ()), strict=True)}
        clips = {path: (*cond["video"][0].size, len(cond["video"])) for path in row.videos[:1]}
        self.check_conditions(row, sizes | clips, call)
        return cond

    def check_conditions(self, row: Row, sizes: Mapping[str, tuple[int, int, int]], call: Mapping[str, Any]) -> None:
        """Needs no weights: a start asks for all rows before it loads any.

        Args:
            sizes: width, height and frames of each of the row's files.

        Raises:
            UserError: the checkpoint cannot use the row's pictures or videos, by their number or size.
        """
        for path in row.images:
            width, height, _ = sizes[path]
            if (reason := self.unusable(width, height, call)) is not None:
                raise UserError(f"{row.source}: {path}: {width} x {height} pixels: {reason}")

    def unusable(self, width: int, height: int, call: Mapping[str, Any]) -> str | None:
        """Why the pipeline cannot use a condition picture of so many pixels; None: it can."""
        return None

    def guided(self, call: Mapping[str, Any]) -> bool:
        """Whether this call runs the transformer a second time, for the negative prompt."""
        if (scale := self.guider_scale(call)) is not None:
            return scale > 1
        return self.cfg is not None and (self.takes(call).get(self.cfg) or 0) > self.unguided

    def guider_scale(self, call: Mapping[str, Any]) -> float | None:
        """What the pipeline's guider is set to, see `guiding`; None: to what the checkpoint says."""
        return call.get(GUIDER)

    @property
    def own_guider(self) -> bool:
        """Whether guidance is a part of the pipeline, its guider, which no argument of its call sets."""
        return getattr(self.pipe, "guider", None) is not None and not getattr(self.pipe, "scales_guider", False)

    def with_guidance(self, call: Mapping[str, Any], scale: float) -> dict[str, Any]:
        """The call with classifier-free guidance of this scale, 1 for none. Guidance that is an input of the model stays what it is.

        A pipeline whose guidance is a part of its own, its guider, takes no argument for it: see `guiding`.
        """
        if self.own_guider:
            return {**call, GUIDER: scale}
        if self.cfg is None:
            return dict(call)
        name = "guidance_scale" if self.cfg == self.guidance else self.cfg
        return {k: v for k, v in call.items() if k not in (self.cfg, f"{self.cfg}_2")} | {name: scale - 1 + self.unguided}

    def tokens(self, row: Row, call: Mapping[str, Any]) -> tuple[int, int]:
        """(tokens of the row's prompt, tokens that the encoder takes)."""
        tokenizer = self.pipe.tokenizer
        text = getattr(tokenizer, "tokenizer", tokenizer)  # a processor has one inside
        return len(text(row.prompt).input_ids), call.get("max_sequence_length", self.text_length)

    def encoded_by(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the section's arguments that change what `encode` returns; see `encodes_by`."""
        return {k: v for k, v in call.items() if k in self.encodes_by}

    def takes(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the section's arguments that the pipeline's `__call__` takes, under its names."""
        taken = {k: v for k, v in call.items() if k in self.parameters}
        if self.guidance != "guidance_scale" and "guidance_scale" in call:
            taken.pop("guidance_scale", None)
            taken.setdefault(self.guidance, call["guidance_scale"])
        return taken
