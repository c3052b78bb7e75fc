"""Commands that are useful after a run, or that resume it."""

from pathlib import Path
from shlex import quote

from flow_factory.config import RunConfig
from flow_factory.config.source import assignment
from flow_factory.rewards import GIVEN

MODELS = {"flux1": "FLUX.1-dev", "sd3_5": "Stable Diffusion 3.5"}
"""Models of full-size examples. The first one that has the algorithm is proposed."""


def resume_command(config: RunConfig, folder: Path) -> str:
    """The command that resumes a run from its last training state, with the run's own config: overrides of its start are in no other.

    No command finds a function that was handed to `flow_factory.train`; of such a run it is the override alone.
    """
    resume = assignment("model.resume_path", str(folder))
    if any(reward.reward_model.startswith(GIVEN) for reward in (*config.rewards, *(config.eval_rewards or ()))):
        return resume
    state = ["model.resume_type=null"] if config.model.resume_type in ("lora", "full") else []
    return " ".join(map(quote, ("ff-train", str(folder / "config.yaml"), resume, *state)))


def next_steps(config: RunConfig, folder: Path, checkpoint: Path, best: Path | None = None) -> dict[str, str]:
    """Purpose -> command. After the quick start, also the same algorithm on a full-size model.

    Args:
        checkpoint: the last one.
        best: the best one by `log.keep_best`, which is proposed in its place.
    """
    what, chosen, compared = "these weights", checkpoint, folder
    if best is not None and best != checkpoint:
        what, chosen, compared = "the best weights", best, best
    keys = (f"run_name={folder.name}-longer", f"model.resume_path={chosen}", f"model.resume_type={config.model.finetune_type}")
    longer = " ".join(map(quote, ("ff-train", str(folder / "config.yaml"), *keys)))
    steps = (
        {f"compare {what} with the base model, with confidence intervals": f"ff-eval {quote(str(compared))} --base"}
        if config.evaluated_by
        else {}
    )
    steps[f"train on from {what}"] = longer
    if config.model.model_name_or_path.startswith("assets/"):
        of_algorithm = Path("examples", config.train.trainer_type.replace("-", "_"), "lora")
        for name, model in MODELS.items():
            if (example := of_algorithm / f"{name}.yaml").is_file():
                return steps | {f"the same for {model}, on GPUs": f"ff-train {example} --check"}
    return steps
