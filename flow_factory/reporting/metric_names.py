"""What every logged metric means: the reference of `ff-train --help-metrics`, which guidance/metrics.md is made from."""

import re
from collections.abc import Mapping

from flow_factory.utils.registry import nearest

METRICS: dict[str, dict[str, str]] = {
    "every epoch": {
        "train/reward_mean": "mean over the epoch's samples of the rewards' weighted sum; a missing score counts for no sample",
        "train/reward_<reward>_mean": "mean of one reward over all groups",
        "train/reward_<reward>_std": "its spread over all samples; near 0: all score alike",
        "train/transformed_<reward>_mean": "mean of what the entry's transform makes of the scores, which the advantages are of",
        "train/zero_variance_share": "share of the groups without any advantage, in [0, 1]; 1: nothing is learned",
        "train/missing_scores": "scores that no reward gave, a count over all groups",
        "train/unscored_samples": "samples without any score, a count; they have no advantage",
        "train/missing/<reward>": "samples for which a reward gave no score, a count",
        "train/seconds/<reward>": "seconds that a reward's calls took, the mean over processes; with async_reward beside the sampling",
        "train/loss": "what is minimised, kl_beta's terms included",
        "train/policy_loss": "the loss without the distances to other weights",
        "train/grad_norm": "norm of the gradient before it is clipped",
        "train/grad_rms": "root mean square of the gradient over the trained weights, to be compared with adam_epsilon",
        "train/learning_rate": "of the epoch's last optimiser step",
        "train/first_update_effect": "largest change of a velocity by the run's first update; 0: the weights did not move",
        "train/dropped_share": "share of micro-batches left out by drop_zero_variance, in [0, 1]",
        "train/kl_div": "distance to the reference, where kl_beta is above 0",
        "train/kl_loss": "kl_beta times that",
    },
    "grpo, grpo-guard, dppo, awm, dgpo": {
        "train/ratio": "mean ratio of the new to the old likelihood of what was sampled, near 1",
        "train/ratio_std": "its spread; far below clip_range: updates do nothing, far above: the clip binds everywhere",
        "train/clip_frac": "share of samples whose ratio is out of clip_range, in [0, 1]",
        "train/clip_frac_high": "share of those above it",
        "train/clip_frac_low": "share of those below it",
        "train/approx_kl": "half the mean square of the log-ratio: how far the policy has moved within the epoch",
        "train/step_weight": "weight of the steps that were trained on, where step_weight is not none; 1 on average over sde_steps",
        "train/ratio_error": "largest abs(ratio - 1) of a micro-batch, the mean over the epoch",
        "train/on_policy_error": "that of the micro-batches before the epoch's first update: training sees what sampling saw, and it is 0",
    },
    "dppo": {
        "train/kl_old": "mean distance from the policy that sampled, as kl_mask_type has it; kl_mask_threshold is one of these",
        "train/kl_old_max": "its largest in a micro-batch, the mean over the epoch",
        "train/far_frac": "share of samples left out, in [0, 1]: they are as far as kl_mask_threshold, and would go further",
        "train/far_frac_high": "share of those with a positive advantage, which have become more likely",
        "train/far_frac_low": "share of those with a negative one",
    },
    "nft, awm": {
        "train/policy_shift": "mean square of v - v_old: how far the policy is from what rolled out",
        "train/optimality": "mean of r, the advantage scaled to [0, 1]; near 1/2 by construction",
        "train/loss_positive": "error of the pulled velocity, weighted by r",
        "train/loss_negative": "error of the pushed velocity, weighted by 1 - r; grows when the push runs away",
        "train/matching_log_prob": "mean log-likelihood by the flow-matching error; falls: the model forgets how to denoise",
        "train/ema_kl_div": "distance to the averaged weights, where ema_kl_beta is above 0",
        "train/ema_kl_loss": "ema_kl_beta times that",
    },
    "dpo": {
        "train/margin": "log-odds by which the chosen sample is preferred, relative to the reference",
        "train/pair_accuracy": "share of pairs with a margin above 0, in [0, 1]",
        "train/ties": "share of groups whose best and worst score alike, in [0, 1]; they teach nothing",
        "train/error_chosen": "flow-matching error of the chosen samples",
        "train/error_rejected": "flow-matching error of the rejected samples",
    },
    "dgpo, crd": {
        "train/group_weight": "0 for a group that is in order, 1/2 at the start, 1 for one that is learned in reverse",
        "train/matching_error": "flow-matching error of the policy",
        "train/matching_error_ref": "flow-matching error of the reference",
        "train/implicit_reward": "R, the policy's own reward",
        "train/given_reward": "p, the advantage scaled to [0, 1]",
    },
    "copies that follow the policy": {
        "train/<copy>_decay": "how much of the copy its last move kept, in [0, 1]; near 1: it hardly moves",
    },
    "every evaluation": {
        "eval/reward_mean": "the rewards' weighted sum over the test rows, each from its own fixed noise",
        "eval/reward_<reward>_mean": "mean of one reward over the test rows",
        "eval/reward_<reward>_std": "its spread over them",
        "eval/correlation/<reward>/<other>": "Spearman's correlation of two rewards, in [-1, 1]; below 0: what one learns the other loses",
        "eval/rows": "test rows that these are of, always the same: eval.max_rows of them",
        "eval/missing/<reward>": "samples without a score, a count",
        "eval/seconds/<reward>": "seconds that a reward took, the mean over processes",
    },
    "the evaluation at the end, where eval.full_at_end takes more rows than the others": {
        "eval_full/reward_mean": "the rewards' weighted sum over all test rows; eval/ goes on with the same rows as before",
        "eval_full/reward_<reward>_mean": "mean of one reward over all of them",
        "eval_full/reward_<reward>_std": "its spread over them",
        "eval_full/correlation/<reward>/<other>": "rank correlation of two rewards over all of them",
        "eval_full/rows": "how many they are",
        "eval_full/missing/<reward>": "samples without a score, a count",
    },
    "several data sets (`data.datasets`)": {
        "train/<dataset>/<metric>": "reward_mean, reward_<reward>_mean, zero_variance_share and so on of one data set's groups; those of "
        "train/ that are logged beside them are of all",
        "eval/<dataset>/<metric>": "what eval/<metric> is of one data set, of its own rows",
        "eval_full/<dataset>/<metric>": "what eval_full/<metric> is of one data set",
    },
    "time and memory": {
        "time/encode_s": "seconds of encoding rows that the run comes to; as all that follow, of work, the mean over processes",
        "time/rollout_s": "seconds of drawing the epoch's samples",
        "time/decode_s": "of these, seconds in which the VAE made pictures of latents",
        "time/reward_s": "seconds of scoring them; of rewards with async_reward, those in which the sampling waited",
        "time/advantage_s": "seconds of bringing scores and shared groups together",
        "time/optimise_s": "seconds of forwards, backwards and updates",
        "time/<phase>_wait_s": "of several processes: seconds in which a process waited for the others behind its work, the mean; an "
        "estimate for optimise, where FSDP2 and ZeRO-3 have none, for every forward is one of all processes",
        "time/epoch_s": "seconds of the epoch from its beginning to its end",
        "time/save_s": "seconds that a checkpoint has held the run up, told with the epoch after it",
        "time/eval_s": "seconds of an evaluation",
        "perf/samples_per_s": "the epoch's samples over its seconds, of all processes; of an epoch that a resumed run took up in its "
        "middle, more than were drawn",
        "perf/<phase>_samples_per_s": "the same for rollout, reward and optimise, waiting included",
        "perf/<phase>_tokens_per_s": "tokens, of text and pictures, through the transformers in the rollout or in the training (a forward "
        "and its backward count once), of all processes, waiting included",
        "perf/<phase>_tflops": "10^12 operations of the transformers' mathematics a second of work, of one process, where there is a "
        "formula (FLUX.1, SD3.5, Qwen-Image, Wan); what is computed again, and the VAE, not counted",
        "perf/<phase>_share_of_peak": "that, as a share of what the data sheet says of the card in 16 bits, where it is known",
        "perf/peak_memory_gb": "GB of the device at the most so far; without a GPU, of the process",
        "perf/<phase>_peak_memory_gb": "GB of the device at the most in a phase, on the process that needed most; not without a GPU, for "
        "no phase of a CPU's work has a peak of its own",
    },
}  # fmt: skip
"""When or by what it is logged -> name -> meaning; <...> stands for a name of the user's or of a copy."""

INTRO = """\
Every line of a run's `metrics.jsonl` has `step`, the epochs done by then, `time`, seconds since 1970, and some of these. What the loss
of an algorithm of your own returns is `train/<its name>`. `ff-train --help-metrics` prints this page; with a name, one line of it."""


def explained(name: str) -> str | None:
    """What a logged metric means; None where the reference has no line for it."""
    for metrics in METRICS.values():
        for pattern, meaning in metrics.items():
            if re.fullmatch(re.sub(r"<\w+>", "(.+)", re.escape(pattern).replace("\\<", "<").replace("\\>", ">")), name):
                return meaning
    return None


def metrics_help(name: str | None = None) -> str:
    """The reference as Markdown, or the one line of a metric.

    Raises:
        ConfigError: no such metric.
    """
    from flow_factory.config import ConfigError

    if name is not None:
        meaning = explained(name)
        if meaning is None:
            known = [pattern for metrics in METRICS.values() for pattern in metrics]
            raise ConfigError(f"no metric {name!r}.{nearest(name, known)} ff-train --help-metrics lists all")
        return f"{name}: {meaning}"
    return "\n\n".join(["# Metrics", INTRO, *(_table(when, metrics) for when, metrics in METRICS.items())])


def _table(when: str, metrics: Mapping[str, str]) -> str:
    rows = [f"| `{pattern}` | {meaning} |" for pattern, meaning in metrics.items()]
    return "\n".join([f"## {when[0].upper()}{when[1:]}", "", "| metric | meaning |", "|---|---|", *rows])
