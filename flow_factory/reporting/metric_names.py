"""The meaning of every logged metric: the text of `ff-train --help-metrics` and of guidance/metrics.md."""

import re
from collections.abc import Mapping
from functools import cache

from flow_factory.utils.registry import nearest

METRICS: dict[str, dict[str, str]] = {
    "every epoch": {
        "train/reward_mean": "weighted sum of the rewards, the mean over the epoch's samples without the missing scores",
        "train/reward_<reward>_mean": "mean of one reward over all groups",
        "train/reward_<reward>_std": "its standard deviation over all samples; near 0: all samples have equal scores",
        "train/transformed_<reward>_mean": "mean of the transformed scores, from which the advantages are computed",
        "train/zero_variance_share": "share of groups without any advantage, because their scores are equal; in [0, 1]; "
        "1: nothing is learned",
        "train/missing_scores": "number of missing scores over all groups",
        "train/unscored_samples": "number of samples without any score; they have no advantage",
        "train/missing/<reward>": "number of samples for which a reward gave no score",
        "train/seconds/<reward>": "seconds of a reward's calls, the mean over processes; with async_reward they overlap with the sampling",
        "train/loss": "the minimised loss, including the KL terms",
        "train/policy_loss": "the loss without the KL terms",
        "train/grad_norm": "norm of the gradient before clipping",
        "train/grad_rms": "root mean square of the gradient over the trained weights; compare it with adam_epsilon",
        "train/learning_rate": "learning rate of the epoch's last optimiser step",
        "train/first_update_effect": "largest change of a velocity by the run's first update; 0: the weights did not move",
        "train/dropped_share": "share of micro-batches that drop_zero_variance skipped, in [0, 1]",
        "train/kl_div": "distance to the reference, where kl_beta is above 0",
        "train/kl_loss": "kl_beta times that",
    },
    "grpo, grpo-guard, dppo, awm, dgpo": {
        "train/ratio": "mean ratio of the new to the old likelihood of the samples; near 1",
        "train/ratio_std": "standard deviation of the ratio; far below clip_range: updates do little; far above: the clip acts everywhere",
        "train/clip_frac": "share of samples whose ratio is outside of clip_range, in [0, 1]",
        "train/clip_frac_high": "share of those above it",
        "train/clip_frac_low": "share of those below it",
        "train/approx_kl": "half the mean square of the log-ratio: how far the policy has moved within the epoch",
        "train/step_weight": "mean weight of the trained steps, if step_weight is not none; 1 on average over sde_steps",
        "train/ratio_error": "largest abs(ratio - 1) of a micro-batch, the mean over the epoch",
        "train/on_policy_error": "the same before the epoch's first update; 0 if training computes exactly what sampling computed",
    },
    "gated KL (GARDO)": {
        "train/kl_gate_share": "k, the share of the samples that are not underrated for which the KL term counts; it adapts",
        "train/gated_share": "the share of all samples for which it counts",
        "train/uncertainty": "how much the trained rewards rank a sample above the watched ones, the mean where that is 0 or more",
        "train/kl_held": "mean KL of a micro-batch's gated samples, 0 without any; one above kl_reset_threshold moves the reference",
        "train/reference_moved": "1 if the policy becomes the reference of the next epoch, else 0",
    },
    "dppo": {
        "train/kl_old": "mean distance from the policy that sampled, in the unit of kl_mask_threshold",
        "train/kl_old_max": "largest such distance in a micro-batch, the mean over the epoch",
        "train/far_frac": "share of masked samples, in [0, 1]: they are beyond kl_mask_threshold, and their advantage "
        "would move them further",
        "train/far_frac_high": "share of masked samples with a positive advantage",
        "train/far_frac_low": "share of masked samples with a negative advantage",
    },
    "nft, awm": {
        "train/policy_shift": "mean square of v - v_old: the distance from the policy that rolled out",
        "train/optimality": "mean of r, the advantage scaled to [0, 1]; near 1/2 by construction",
        "train/loss_positive": "error of the pulled velocity, weighted by r",
        "train/loss_negative": "error of the pushed velocity, weighted by 1 - r; grows if the push diverges",
        "train/matching_log_prob": "mean log-likelihood by the flow-matching error; falls: the model forgets how to denoise",
        "train/ema_kl_div": "distance to the averaged weights, where ema_kl_beta is above 0",
        "train/ema_kl_loss": "ema_kl_beta times that",
    },
    "dpo": {
        "train/margin": "log-odds of preferring the chosen sample, relative to the reference",
        "train/pair_accuracy": "share of pairs with a margin above 0, in [0, 1]",
        "train/ties": "share of groups whose best and worst scores are equal, in [0, 1]; they teach nothing",
        "train/error_chosen": "flow-matching error of the chosen samples",
        "train/error_rejected": "flow-matching error of the rejected samples",
    },
    "dgpo, crd, sft": {
        "train/group_weight": "w of a group: 0 if the policy ranks it correctly, 1/2 at the start, 1 if it ranks it in reverse",
        "train/matching_error": "flow-matching error of the policy",
        "train/matching_error_ref": "flow-matching error of the reference",
        "train/implicit_reward": "R, the policy's own reward",
        "train/given_reward": "p, the advantage scaled to [0, 1]",
    },
    "draft": {
        "train/score": "the rewards' weighted sum of what is learnt from, pixels that are not rounded; train/reward_mean is the pictures'",
        "train/slope": "norm of the gradient of a sample's loss in a state, the mean over the steps that are trained on",
    },
    "diffusion-opd": {
        "train/teacher_error": "mean square of v - v_teacher at the states of the policy's own path; 0: the policy is its teacher",
        "train/teacher_error/<teacher>": "the same for the rows of one teacher, if there are several",
    },
    "dmd2, tdm, tdm-r1": {
        "train/fake_loss": "error of the fake network on noised pictures of the student; rising: it does not keep up",
        "train/score_distance": "mean distance of what the base and the fake network make of a noised picture; 0: the student is the base",
        "train/surrogate_loss": "of tdm-r1: the surrogate's preference in its groups, and its distance to the base",
        "train/surrogate_pull": "of tdm-r1: mean distance of what the guided surrogate and the base make of a noised picture",
        "train/<network>_grad_norm": "norm of the gradient of a network beside the policy, before it is clipped",
        "train/<network>_grad_rms": "its root mean square over the network's weights",
    },
    "copies that follow the policy": {
        "train/<copy>_decay": "share of the copy that its last update kept, in [0, 1]; near 1: it hardly moves",
    },
    "every evaluation": {
        "eval/loss": "sft, offline dpo: of the test rows that bring a target or a pair, always at the same noise and noise levels",
        "eval/margin": "offline dpo: the margin of these",
        "eval/pair_accuracy": "offline dpo: the share of these with a margin above 0, in [0, 1]",
        "eval/reward_mean": "weighted sum of the rewards, the mean over the test rows, each with its own fixed noise",
        "eval/reward_<reward>_mean": "mean of one reward over the test rows",
        "eval/reward_<reward>_std": "its standard deviation over the test rows",
        "eval/correlation/<reward>/<other>": "Spearman's rank correlation of two rewards, in [-1, 1]; below 0: the rewards conflict",
        "eval/rows": "number of evaluated test rows, always the same ones (eval.max_rows)",
        "eval/missing/<reward>": "number of samples without a score",
        "eval/seconds/<reward>": "seconds of a reward's calls, the mean over processes",
    },
    "monitor, when a watch is out of bounds": {
        "monitor/alarms": "number of watches of monitor: that warn or act after this epoch or evaluation; monitor.jsonl says what they saw",
        "monitor/back_to": "the epoch whose weights and optimizer the run has gone back to; -1: there were none",
        "monitor/lr_factor": "the monitor's factor of the learning rate in train:",
    },
    "the last evaluation, if eval.full_at_end takes more rows than the others": {
        "eval_full/reward_mean": "weighted sum of the rewards, the mean over all test rows; eval/ still covers the same rows as before",
        "eval_full/reward_<reward>_mean": "mean of one reward over all test rows",
        "eval_full/reward_<reward>_std": "its standard deviation over all test rows",
        "eval_full/correlation/<reward>/<other>": "rank correlation of two rewards over all test rows",
        "eval_full/rows": "number of all test rows",
        "eval_full/missing/<reward>": "number of samples without a score",
    },
    "several data sets (`data.datasets`)": {
        "train/<dataset>/<metric>": "reward_mean, reward_<reward>_mean, zero_variance_share and so on of one data set's groups; those of "
        "train/ that are logged beside them are of all",
        "eval/<dataset>/<metric>": "what eval/<metric> is of one data set, of its own rows",
        "eval_full/<dataset>/<metric>": "what eval_full/<metric> is of one data set",
    },
    "time and memory": {
        "time/encode_s": "seconds of encoding rows during the run; this and all that follow: time of work, the mean over processes",
        "time/rollout_s": "seconds of drawing the epoch's samples",
        "time/decode_s": "seconds of these in which the VAE decoded latents",
        "time/reward_s": "seconds of scoring; with async_reward, seconds in which the sampling waited",
        "time/advantage_s": "seconds of gathering scores and shared groups, and of computing advantages",
        "time/optimise_s": "seconds of forwards, backwards and updates",
        "time/<phase>_wait_s": "several processes: seconds in which a process waited for the others after its work, the mean; an "
        "estimate for optimise, and not available there with FSDP2 and ZeRO-3, which share every forward",
        "time/epoch_s": "seconds of the whole epoch",
        "time/save_s": "seconds that saving a checkpoint blocked the run, logged with the next epoch",
        "time/eval_s": "seconds of an evaluation",
        "perf/samples_per_s": "the epoch's samples divided by its seconds, over all processes; too high for an epoch that was resumed in "
        "its middle",
        "perf/<phase>_samples_per_s": "the same for rollout, reward and optimise, including waiting",
        "perf/<phase>_tokens_per_s": "text and image tokens through the transformers per second, in the rollout or in training (a forward "
        "and its backward count once), over all processes, including waiting",
        "perf/<phase>_tflops": "10^12 floating-point operations of the transformers per second of work, of one process, if there is a "
        "formula (FLUX.1, SD3.5, Qwen-Image, Wan); without recomputation and without the VAE",
        "perf/<phase>_share_of_peak": "the same as a share of the GPU's 16-bit peak in its data sheet, if known",
        "perf/peak_memory_gb": "peak memory of the device so far, in GB; without a GPU, of the process",
        "perf/<phase>_peak_memory_gb": "peak memory of the device in a phase, in GB, on the process with the highest; only with a GPU, "
        "because a CPU's peak cannot be measured per phase",
    },
}  # fmt: skip
"""When a metric is logged -> name -> meaning. <...> stands for a name from the config."""

INTRO = """\
Every line of a run's `metrics.jsonl` has `step` (the epochs done), `time` (seconds since 1970), and some of these metrics. Metrics that the
loss of your own algorithm returns are `train/<name>`. `ff-train --help-metrics` prints this page, or the line of one metric."""


@cache
def explained(name: str) -> str | None:
    """The meaning of a logged metric; None if the reference does not have it."""
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
    from flow_factory.config import TRAIN_CONFIGS

    rows = [f"| `{pattern}` | {meaning} |" for pattern, meaning in metrics.items()]
    heading = when if when.replace(",", " ").split()[0] in TRAIN_CONFIGS else when[0].upper() + when[1:]
    return "\n".join([f"## {heading}", "", "| metric | meaning |", "|---|---|", *rows])
