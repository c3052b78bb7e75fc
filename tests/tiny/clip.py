"""A tiny random CLIP checkpoint of transformers' own classes: what the CLIP and PickScore rewards load. Offline, deterministic."""

from pathlib import Path

import torch
import transformers
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.utils import is_torchvision_available

from tests.tiny.text import clip_tokenizer

SIZE = 32


def model(tokens: CLIPTokenizer) -> CLIPModel:
    """Two layers of width 32; spread out further than CLIP's own initialisation, so that scores differ visibly."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "projection_dim": 16}
    ids = {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id}
    config = CLIPConfig(
        text_config={**tower, **ids, "vocab_size": len(tokens), "max_position_embeddings": 77},
        vision_config={**tower, "image_size": SIZE, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)  # its vectors keep their first values
    clip = CLIPModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        clip.logit_scale.fill_(4.6052)  # exp of it is 100, as trained CLIPs have
    return clip


def save_clip(folder: Path) -> Path:
    """Write model and processor into one folder, as on the hub; returns the folder."""
    tokens = clip_tokenizer()
    processor = getattr(transformers, "CLIPImageProcessor" if is_torchvision_available() else "CLIPImageProcessorPil")
    images = processor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    with torch.random.fork_rng(devices=[]):
        model(tokens).save_pretrained(folder)
    CLIPProcessor(image_processor=images, tokenizer=tokens).save_pretrained(folder)
    return folder
