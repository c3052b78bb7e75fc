"""LongCat-Image and LongCat-Image-Edit."""

from collections.abc import Mapping
from typing import Any, ClassVar

from PIL import ImageOps

from flow_factory.models.named import Named
from flow_factory.types import Cond, Row


class LongCatImage(Named):
    """https://huggingface.co/meituan-longcat/LongCat-Image, under Apache-2.0.

    `enable_prompt_rewrite: false` draws the row's own prompt; by default the text encoder rewrites it first.
    """

    pipeline = "diffusers.pipelines.longcat_image.pipeline_longcat_image:LongCatImagePipeline"
    encoders = ("text_encoder",)
    published: ClassVar[Mapping[str, float]] = {"transformer": 6.271e9, "text_encoder": 8.292e9, "vae": 0.084e9}
    published_config: ClassVar[Mapping[str, Any]] = {"num_layers": 10, "num_single_layers": 20}


class LongCatImageEdit(LongCatImage):
    """https://huggingface.co/meituan-longcat/LongCat-Image-Edit: one picture and an instruction.

    The pipeline takes no size: it draws a megapixel in the shape of its picture, which is therefore cropped to the shape of the call.
    """

    pipeline = "diffusers.pipelines.longcat_image.pipeline_longcat_image_edit:LongCatImageEditPipeline"
    images = (1, 1)

    def conditions(self, row: Row, call: Mapping[str, Any]) -> Cond:
        cond = super().conditions(row, call)
        return cond | {"image": [ImageOps.fit(picture, (call["width"], call["height"])) for picture in cond["image"]]}
