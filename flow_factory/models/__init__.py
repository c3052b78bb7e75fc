"""Model families, one file each: the pipeline, the LoRA targets, and how a row becomes call arguments.

It knows no algorithm and no reward.
"""

from flow_factory.utils.registry import Registry

HERE = "flow_factory.models"
MODELS = Registry(
    "model",
    {
        "flux1": f"{HERE}.flux1:Flux1",
        "flux1-kontext": f"{HERE}.flux1:Flux1Kontext",
        "flux2": f"{HERE}.flux2:Flux2",
        "flux2-klein": f"{HERE}.flux2:Flux2Klein",
        "z-image": f"{HERE}.z_image:ZImage",
        "qwen-image": f"{HERE}.qwen_image:QwenImage",
        "qwen-image-edit-plus": f"{HERE}.qwen_image:QwenImageEditPlus",
        "wan2_t2v": f"{HERE}.wan:WanT2V",
        "wan2_i2v": f"{HERE}.wan:WanI2V",
        "wan2_v2v": f"{HERE}.wan:WanV2V",
        "sd3-5": f"{HERE}.sd3:SD3",
        "ltx2_t2av": f"{HERE}.ltx2:LTX2",
        "ltx2_i2av": f"{HERE}.ltx2:LTX2I2AV",
        "qwen-image-2.1": f"{HERE}.qwen_image21:QwenImage21",
        "hunyuan-video15_t2v": f"{HERE}.hunyuan:HunyuanVideo15T2V",
        "hunyuan-video15_i2v": f"{HERE}.hunyuan:HunyuanVideo15I2V",
        "flux1-fill": f"{HERE}.flux1_tools:Flux1Fill",
        "flux1-control": f"{HERE}.flux1_tools:Flux1Control",
        "wan2_vace": f"{HERE}.wan_vace:WanVACE",
        "hunyuan-image": f"{HERE}.hunyuan:HunyuanImage",
        "kandinsky5_t2i": f"{HERE}.kandinsky5:Kandinsky5T2I",
        "kandinsky5_i2i": f"{HERE}.kandinsky5:Kandinsky5I2I",
        "kandinsky5_t2v": f"{HERE}.kandinsky5:Kandinsky5T2V",
        "kandinsky5_i2v": f"{HERE}.kandinsky5:Kandinsky5I2V",
        "longcat-image": f"{HERE}.longcat:LongCatImage",
        "longcat-image-edit": f"{HERE}.longcat:LongCatImageEdit",
        "krea2": f"{HERE}.krea2:Krea2",
        "flux2-klein-kv": f"{HERE}.flux2_klein_kv:Flux2KleinKV",
        "diffusers": f"{HERE}.diffusers:Diffusers",
    },
    aliases={"flux": "flux1", "flux-dev": "flux1", "kontext": "flux1-kontext", "sd3": "sd3-5", "stable-diffusion-3-5": "sd3-5",
             "wan-t2v": "wan2_t2v", "wan-i2v": "wan2_i2v", "wan-v2v": "wan2_v2v",
             "wan21-t2v": "wan2_t2v", "wan22-t2v": "wan2_t2v", "wan21-i2v": "wan2_i2v", "wan22-i2v": "wan2_i2v",
             "flux2-klein-base": "flux2-klein", "z-image-turbo": "z-image", "ltx2": "ltx2_t2av",
             "qwen-image-21": "qwen-image-2.1", "hunyuan-video-1.5_t2v": "hunyuan-video15_t2v",
             "hunyuan-video-1.5_i2v": "hunyuan-video15_i2v", "wan-vace": "wan2_vace", "wan21-vace": "wan2_vace", "krea-2": "krea2"},
    base=f"{HERE}.base:ModelAdapter",
    otherwise="model_type: diffusers runs most stock pipelines",
)  # fmt: skip
