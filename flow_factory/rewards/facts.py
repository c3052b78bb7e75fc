"""The facts for the choice of a reward, for the README's table and `ff-reward list`. It imports nothing heavy."""

from typing import NamedTuple


class Facts(NamedTuple):
    """The facts about one reward."""

    kind: str
    """pointwise: a sample's score is its own; groupwise: it depends on its group."""
    scores: str
    """The inputs that it scores."""
    weights: str
    licence: str
    """The licence of the weights."""
    scale: str
    where: str


LOCAL, JUDGE = "the training device, or another (device:)", "a judge here or on a server"
CLIP_L, CLIP_H = "openai/clip-vit-large-patch14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
OCR_WEIGHTS = "PaddlePaddle/PP-OCRv5_server_det_safetensors, ..._rec_safetensors"
_PICK = ("image, video, prompt", "yuvalkirstain/PickScore_v1", "the card names none (code MIT)")
_RATIONAL = ("image, prompt, condition image", "a judge, TIGER-Lab/RationalRewards-8B-", "Apache-2.0", "0 to 1", JUDGE)
_ASKED = ("image, video, prompt, any column", "any judge", "the judge's", "0 to 1", JUDGE)
_REMOTE = ("what the reward there takes", "a server's", "that reward's", "that reward's", "a server: ff-reward serve")

FACTS: dict[str, Facts] = {
    "PickScore": Facts("pointwise", *_PICK, "about 0.7 to 0.95", LOCAL),
    "PickScore_Rank": Facts("groupwise", *_PICK, "the rank in the group, from 0 to below 1", LOCAL),
    "CLIP": Facts("pointwise", "image, video, prompt", CLIP_L, "MIT", "cosine, about 0.15 to 0.35", LOCAL),
    "HPSv2": Facts("pointwise", "image, video, prompt", f"xswu/HPSv2 (2.1) on {CLIP_H}", "Apache-2.0", "cosine, about 0.20 to 0.35", LOCAL),
    "HPSv3": Facts("pointwise", "image, video, prompt", "MizzenAI/HPSv3 on Qwen/Qwen2-VL-7B-Instruct", "MIT", "about -1 to 12", LOCAL),
    "VideoAlign": Facts(
        "pointwise", "video, prompt", "KwaiVGI/VideoReward on Qwen/Qwen2-VL-2B-Instruct", "Apache-2.0", "about -9 to 9", LOCAL
    ),
    "ImageReward": Facts("pointwise", "image, video, prompt", "THUDM/ImageReward", "Apache-2.0", "about -2 to 2", LOCAL),
    "GenEval": Facts(
        "pointwise", "image, video, column include", f"facebook/mask2former-swin-small-coco-instance, {CLIP_L}",
        "see their cards (code MIT)", "0 or 1; partial: true 0 to 1", LOCAL,
    ),
    "OCR": Facts("pointwise", "image, video, a text in quotes or a column", OCR_WEIGHTS, "Apache-2.0", "0 to 1", LOCAL),
    "clap": Facts("pointwise", "sound, prompt", "laion/larger_clap_general", "Apache-2.0", "cosine, about 0.2 to 0.6", LOCAL),
    "aesthetic": Facts("pointwise", "image, video", f"trl-lib/ddpo-aesthetic-predictor on {CLIP_L}", "Apache-2.0", "1 to 10", LOCAL),
    "vlm_yes_no": Facts("pointwise", *_ASKED),
    "vlm_rubric": Facts("pointwise", *_ASKED),
    "vlm_pairwise": Facts("groupwise", *_ASKED),
    "vllm_evaluate": Facts("pointwise", "image, video; with a template prompt, any column", *_ASKED[1:]),
    "rational_rewards_t2i": Facts("pointwise", "image, prompt", f"{_RATIONAL[1]}T2I", *_RATIONAL[2:]),
    "rational_rewards_edit": Facts("pointwise", _RATIONAL[0], f"{_RATIONAL[1]}Edit", *_RATIONAL[2:]),
    "UnifiedReward": Facts(
        "pointwise", "image, video, prompt", "a judge, CodeGoat24/UnifiedReward-2.0-qwen3vl-8b", "MIT", "0 to 1", JUDGE
    ),
    "UnifiedReward_pairwise": Facts(
        "groupwise", "image, video, prompt", "a judge, CodeGoat24/UnifiedReward-qwen-7b", "see its card", "0 to 1", JUDGE
    ),
    "GenEval2": Facts("pointwise", "image, video, column vqa_list", "a judge, Qwen/Qwen3-VL-8B-Instruct", "Apache-2.0", "0 to 1", JUDGE),
    "remote": Facts("pointwise", *_REMOTE),
    "remote_group": Facts("groupwise", *_REMOTE),
    "diversity": Facts("groupwise", "image, video", f"{CLIP_L}; features: pixels: none", "MIT", "0 to 2", LOCAL),
    "saturation": Facts("pointwise", "image, video", "none", "-", "0 to 1", LOCAL),
    "high_frequency": Facts("pointwise", "image, video", "none", "-", "0 to 1", LOCAL),
    "jpeg_compressibility": Facts("pointwise", "image, video", "none", "-", "-kB / 500", LOCAL),
    "jpeg_incompressibility": Facts("pointwise", "image, video", "none", "-", "kB / 500", LOCAL),
    "shapes": Facts("pointwise", "image, column objects", "none", "-", "0 to 1", LOCAL),
    "shape_colors": Facts("pointwise", "image, prompt", "none", "-", "-3 to 1", LOCAL),
}  # fmt: skip
