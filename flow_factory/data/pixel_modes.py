"""Brings the pixels of image files to 8-bit RGB, and of masks to 8-bit grey."""

import numpy as np
from PIL import Image


def rgb(image: Image.Image) -> Image.Image:
    """Converts to 8-bit RGB, with transparency on white. 16-bit grey is scaled to 8 bits and rounded."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32)
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def grey(image: Image.Image) -> Image.Image | None:
    """Converts to 8-bit grey (mode L); None: the image has transparent parts, for which there is no grey."""
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        return None
    return rgb(image).convert("L")
