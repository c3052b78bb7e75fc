"""`ff-export`: write a checkpoint's trained weights for other programs, or a whole model with the weights inside."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from flow_factory.commands.generate import config_of, weights_of
from flow_factory.commands.places import out_path
from flow_factory.commands.subcommands import entry_points, set_up_terminal
from flow_factory.utils.errors import UserError
from flow_factory.utils.terminal import note

EXAMPLES = """\
examples:
  ff-export save/RUN --to comfyui --out shapes.safetensors               the newest checkpoint of a run, for ComfyUI's models/loras
  ff-export save/run/checkpoints/epoch_40 --to kohya --out lora.safetensors --dtype bf16
  ff-export save/run --to merged --out my_model --scale 0.8              a whole pipeline, for from_pretrained
  ff-export save/run --to diffusers --out shapes --push me/shapes        with a model card, onto the hub
  ff-export save/run --to merged --out my_model.safetensors              its transformer, for from_single_file

formats:
  diffusers  for pipe.load_lora_weights(PATH); of full weights, a transformer folder for from_pretrained
  peft       for PeftModel.from_pretrained(transformer, PATH)
  comfyui    layers as the authors of the model name them, behind diffusion_model.
  kohya      the same names behind lora_unet_, as sd-scripts and musubi-tuner write them
  merged     the base model with the trained weights inside: a pipeline's folder, or the transformer in one .safetensors file

PATH ends in .safetensors for one file, or is a new folder. Two trained transformers (Wan 2.2) give two files, PATH_high_noise and
PATH_low_noise. The header of each file says the base model, prompts of the data set and how the rewards changed.
"""
TO = ("diffusers", "peft", "comfyui", "kohya", "merged")
DTYPES = ("bf16", "fp16", "fp32")
SUFFIX = ".safetensors"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="ff-export", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run's folder, a checkpoint, or a LoRA file")
    p.add_argument("--to", required=True, choices=TO, help="the format, see below")
    p.add_argument("--out", required=True, type=out_path, metavar="PATH", help="a new folder, or a new file that ends in .safetensors")
    p.add_argument("--dtype", choices=DTYPES, help="of what is written (default: as saved; for merged the run's mixed_precision)")
    p.add_argument("--scale", type=strength, default=1.0, metavar="X", help="strength of the LoRA (default: 1, as trained)")
    p.add_argument(
        "--weights", choices=("saved", "last"), default="saved",
        help="saved: as evaluated, the average (EMA) if the run keeps one; last: the trained weights themselves, of the training state",
    )  # fmt: skip
    p.add_argument("--config", type=Path, metavar="FILE", help="the run's YAML (default: config.yaml in the run's folder)")
    p.add_argument("--model", metavar="NAME|FOLDER", help="the base model, if it is not where the run found it")
    p.add_argument("--card", action="store_true", help="also write the model card, the config and the run's pictures into the folder")
    p.add_argument("--push", metavar="OWNER/NAME", help="as --card, and upload the folder to the hub")
    p.add_argument("--private", action="store_true", help="with --push: a repository that is made is private")
    p.set_defaults(act=act)
    return p


def strength(text: str) -> float:
    """Raises:
    argparse.ArgumentTypeError: the text is not a finite number.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a strength, such as 0.8")
    return number


def act(args: argparse.Namespace) -> int:
    """Writes the files and prints their paths; notes say what is in them and how to load them."""
    set_up_terminal()
    checkpoint = weights_of([args.checkpoint], base=False)[0][0]
    assert checkpoint is not None
    config = config_of(args.config, [checkpoint], [f"model.model_name_or_path={args.model}"] if args.model else [])
    if args.to == "peft" and args.out.suffix == SUFFIX:
        raise UserError(f"--out: peft is a folder with its config; write {args.out.with_suffix('')}")
    if args.out.exists() and not (args.out.is_dir() and args.out.suffix != SUFFIX and not any(args.out.iterdir())):
        raise UserError(f"--out: {args.out} exists already; name another, or delete it")
    carded = args.card or args.push is not None
    if carded and args.out.suffix == SUFFIX:
        raise UserError(f"--out: a model card needs a folder, beside the weights; write {args.out.with_suffix('')}")
    if args.private and args.push is None:
        raise UserError("--private: only a repository that --push makes can be private; add --push, or leave it out")
    from flow_factory.commands.exporting import Job, export
    from flow_factory.commands.written import written_lines
    from flow_factory.reporting.model_card import Published, write_card
    from flow_factory.runs.provenance import prompts_of
    from flow_factory.utils.hub import push, require_push

    if args.push is not None:
        require_push(args.push, "--push")
    job = Job(config, checkpoint, args.to, args.out, args.dtype, args.scale, args.weights == "last")
    paths = export(job)
    print(*paths, sep="\n")  # alone on stdout, for scripts
    if carded:
        print(write_card(Published(config, args.out, job.run, checkpoint.name, args.push, prompts_of(config))))
    if args.push is not None:
        print(push(args.out, args.push, "--push", args.private))
    note(*written_lines(job, paths))
    return 0


main, run = entry_points(parser)

if __name__ == "__main__":
    run()
