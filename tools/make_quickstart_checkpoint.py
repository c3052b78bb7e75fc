"""Makes the quick start's checkpoint: a tiny FLUX.1, really trained on the shapes world.

    python tools/make_quickstart_checkpoint.py vae  --seconds 600  --work build/quickstart
    python tools/make_quickstart_checkpoint.py flow --seconds 3600 --work build/quickstart
    python tools/make_quickstart_checkpoint.py ship --work build/quickstart --out assets/tiny-flux-shapes

Everything is a stock class of diffusers or transformers, so `FluxPipeline.from_pretrained` loads it. The VAE turns one cell of the
4 x 4 board into one transformer token. A share of the captions is wrong (`--noise`), as it is on the web: the model learns to draw
right and wrong pictures, and RL has something to choose from.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxPipeline
from quickstart_pipeline import build
from shapes_world import SIZE, balanced, captions, render, split
from torch import Tensor

from flow_factory.rewards.shapes_detector import detect, grade

TEXT_LENGTH = 10  # T5 tokens of the longest caption, with its end mark; FLUX has no text mask, so sampling must use the same length
KINDS = {"single": 1, "count": 3, "pair": 4, "position": 8}


def as_input(pictures: np.ndarray) -> Tensor:
    """uint8 (n, height, width, 3) -> float (n, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def as_pictures(x: Tensor) -> np.ndarray:
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def drawn(rows: list[dict], rng: random.Random, noise: float, clutter: float = 0.0) -> np.ndarray:
    return np.stack([render(row, rng, noise, clutter) for row in rows])


def strict(pictures: np.ndarray, rows: list[dict]) -> np.ndarray:
    return np.array([grade(f, r["objects"], r["relation"])[1] for f, r in zip(detect(pictures), rows, strict=True)])


def cosine(done: float, warm: float = 0.02) -> float:
    return min(1.0, done / warm) * (0.5 * (1 + math.cos(math.pi * min(done, 1))) + 0.005)


def train_vae(args: argparse.Namespace) -> None:
    channels = (8, 16, 32, 32)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=channels,
        layers_per_block=1, latent_channels=8, norm_num_groups=4, sample_size=SIZE, mid_block_add_attention=False, use_quant_conv=False,
        use_post_quant_conv=False, force_upcast=False, shift_factor=0.0, scaling_factor=1.0)  # fmt: skip
    rng, rows = random.Random(1), captions()
    rows = [rng.choice(rows) for _ in range(6000)]
    pictures = drawn(rows, rng, 0.5)
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0)
    start, step = time.time(), 0
    while (done := (time.time() - start) / args.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * cosine(done)
        side, n = (32, 32) if done < 0.8 else (SIZE, 8)  # crops are cheap; whole pictures last
        corners = (SIZE - side) // 8 + 1
        which, top, left = (torch.randint(0, m, (n,)).tolist() for m in (len(rows), corners, corners))
        at = [(i, 8 * y, 8 * x) for i, y, x in zip(which, top, left, strict=True)]
        x = as_input(np.stack([pictures[i, y : y + side, x : x + side] for i, y, x in at])).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        rec = F.l1_loss(y, x) + F.mse_loss(y, x)
        loss = rec + 1e-3 * posterior.kl().mean() / (side // 8) ** 2 / 8
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 500 == 0:
            print(f"vae step {step} {done:.0%} reconstruction {rec.item():.4f}", flush=True)
    vae.eval().to(memory_format=torch.contiguous_format)
    clean = drawn(rows[:1000], rng, 0.0)
    with torch.no_grad():
        z = torch.cat([vae.encode(x).latent_dist.mean for x in as_input(clean).split(100)])
        vae.register_to_config(shift_factor=z.mean().item(), scaling_factor=1 / z.std().item())
        for extra in (0.0, 0.1):
            y = torch.cat([vae.decode(c + extra * z.std() * torch.randn_like(c)).sample for c in z.split(100)])
            print(f"strict after the VAE, latent noise {extra}: {strict(as_pictures(y), rows[:1000]).mean():.3f}")
    vae.save_pretrained(args.work / "vae")


def encode_pictures(vae: AutoencoderKL, pictures: np.ndarray) -> Tensor:
    """Packed, normalised latents (n, 16, 32)."""
    with torch.no_grad():
        z = torch.cat([vae.encode(as_input(c)).latent_dist.mean for c in np.array_split(pictures, max(1, len(pictures) // 64))])
    z = (z - vae.config.shift_factor) * vae.config.scaling_factor
    return FluxPipeline._pack_latents(z, *z.shape)


def optimizers(pipe: FluxPipeline, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the rest."""
    blocks = {
        id(p)
        for b in (pipe.transformer.transformer_blocks, pipe.transformer.single_transformer_blocks)
        for p in b.parameters()
        if p.ndim == 2
    }
    all_ = [p for m in (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2) for p in m.parameters()]
    muon = torch.optim.Muon([p for p in all_ if id(p) in blocks], lr=lr, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW([p for p in all_ if id(p) not in blocks], lr=lr, betas=(0.9, 0.98), weight_decay=1e-3)
    return [muon, adam] if blocks else [adam]


def flow_matching_loss(pipe: FluxPipeline, x0: Tensor, clip_ids: Tensor, t5_ids: Tensor, time_mean: float) -> Tensor:
    """The mean squared error of the velocity, at a random noise level for each sample."""
    s = torch.sigmoid(torch.randn(len(x0)) * 1.2 + time_mean)
    noise, sb = torch.randn_like(x0), s[:, None, None]
    v = pipe.transformer(
        hidden_states=(1 - sb) * x0 + sb * noise, timestep=s, pooled_projections=pipe.text_encoder(clip_ids).pooler_output,
        encoder_hidden_states=pipe.text_encoder_2(t5_ids)[0], txt_ids=torch.zeros(TEXT_LENGTH, 3),
        img_ids=pipe._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32), return_dict=False,
    )[0]  # fmt: skip
    return F.mse_loss(v, noise - x0)


def training_data(pipe: FluxPipeline, train: list, args: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(latents of the pictures, index of each one's caption, CLIP's tokens of the captions, T5's)."""
    rng = random.Random(5)
    rows = balanced(train, {k: 2000 * w for k, w in KINDS.items()}, rng)
    cache = args.work / f"latents_{args.noise}_{args.clutter}.pt"
    if not cache.exists():
        torch.save(encode_pictures(pipe.vae, drawn(rows, rng, args.noise, args.clutter)), cache)
    z = torch.load(cache)
    print("latents", tuple(z.shape), z.std().item(), flush=True)
    unique = sorted({r["prompt"] for r in rows})
    which = torch.tensor([{p: i for i, p in enumerate(unique)}[r["prompt"]] for r in rows])
    clip_ids, t5_ids = (
        tok(unique, padding="max_length", max_length=n, truncation=True, return_tensors="pt").input_ids
        for tok, n in ((pipe.tokenizer, 32), (pipe.tokenizer_2, TEXT_LENGTH))
    )
    return z, which, clip_ids, t5_ids


def train_flow(args: argparse.Namespace) -> None:
    source = args.start or args.work / "pipeline"
    if args.start:
        pipe = FluxPipeline.from_pretrained(source, torch_dtype=torch.float32)
    else:
        pipe = build(AutoencoderKL.from_pretrained(args.work / "vae"), args.width, args.heads, args.double, args.single)
    for name in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        print(name, f"{sum(p.numel() for p in getattr(pipe, name).parameters()) / 1e6:.3f} M")
    train, held_out = split()
    z, which, clip_ids, t5_ids = training_data(pipe, train, args)
    trained = [p for m in (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2) for p in m.parameters()]
    ema = [p.detach().clone() for p in trained]
    optims = optimizers(pipe, args.lr)
    start, step, losses, reported = time.time(), 0, [], 0.0
    test = balanced(held_out, {"count": 48, "pair": 48, "position": 48}, random.Random(3))
    while (done := (time.time() - start) / args.seconds) < 1:
        k = torch.randint(0, len(z), (args.batch,))
        loss = flow_matching_loss(pipe, z[k], clip_ids[which[k]], t5_ids[which[k]], args.time_mean)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optims:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * cosine(done)
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        torch._foreach_lerp_(ema, [p.detach() for p in trained], 1 - min(0.998, 1 - 1 / (step + 1) ** 0.8))
        losses.append(loss.item())
        if time.time() - start > reported + args.tell:
            reported = time.time() - start
            report(pipe, trained, ema, test, f"step {step} {reported:.0f} s loss {np.mean(losses[-300:]):.4f}", args)
    report(pipe, trained, ema, test, f"end: step {step}, {step * args.batch} pictures, loss {np.mean(losses[-300:]):.4f}", args)


@torch.no_grad()
def report(pipe: FluxPipeline, trained: list, ema: list, test: list, said: str, args: argparse.Namespace) -> None:
    """Held-out strict accuracy with the averaged weights, which are saved."""
    live = [p.detach().clone() for p in trained]
    torch._foreach_copy_(trained, ema)
    pipe.set_progress_bar_config(disable=True)
    call = {"height": SIZE, "width": SIZE, "num_inference_steps": 8, "max_sequence_length": TEXT_LENGTH, "output_type": "np"}
    images = pipe([r["prompt"] for r in test], generator=torch.Generator().manual_seed(0), **call).images
    ok = strict((images * 255).round().astype(np.uint8), test)
    by_kind = {
        k: round(float(np.mean([o for o, r in zip(ok, test, strict=True) if r["kind"] == k])), 3) for k in ("count", "pair", "position")
    }
    print(said, f"held-out strict {ok.mean():.3f}", by_kind, flush=True)
    pipe.save_pretrained(args.work / args.name)
    torch._foreach_copy_(trained, live)


def ship(args: argparse.Namespace) -> None:
    pipe = FluxPipeline.from_pretrained(args.work / args.name).to(torch.float16)
    pipe.save_pretrained(args.out)
    for file in args.out.rglob("*.json"):  # where it was made is nobody's concern
        text = json.loads(file.read_text())
        if text.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(text, indent=2) + "\n")
    print(json.dumps({"MB": round(sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file()) / 1e6, 2)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("vae", "flow", "ship"))
    parser.add_argument("--work", type=Path, default=Path("build/quickstart"))
    parser.add_argument("--out", type=Path, default=Path("assets/tiny-flux-shapes"))
    parser.add_argument("--start", type=Path, help="continue from this pipeline")
    parser.add_argument("--name", default="pipeline", help="folder below --work that holds the trained pipeline")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--tell", type=float, default=120, help="seconds between two evaluations")
    parser.add_argument("--noise", type=float, default=0.35, help="share of the captions that their picture contradicts")
    parser.add_argument(
        "--time-mean", type=float, default=0.5, help="median training time is sigmoid of it; objects are chosen at high ones"
    )
    parser.add_argument("--clutter", type=float, default=0.4, help="share of the pictures that show something beside what the caption says")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    for name, default in (("width", 96), ("heads", 6), ("double", 2), ("single", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.work.mkdir(parents=True, exist_ok=True)
    {"vae": train_vae, "flow": train_flow, "ship": ship}[args.stage](args)


if __name__ == "__main__":
    main()
