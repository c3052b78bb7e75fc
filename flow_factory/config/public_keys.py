"""Sections and keys of the public Flow-Factory's files that stand under other names here, brought to ours before the values are checked."""

from collections.abc import Collection, Mapping
from typing import Any

from flow_factory.config.base import PRECISIONS, show
from flow_factory.config.nodes import Keys, Problem
from flow_factory.config.source import Source

ANY_OPTIMIZER = {"optimizer": "optimizer", "learning_rate": "learning_rate", "max_grad_norm": "max_grad_norm"}
OPTIMIZERS = {
    "adamw": {"weight_decay": "adam_weight_decay", "betas": "adam_betas", "eps": "adam_epsilon"},
    "muon": {
        "weight_decay": "adam_weight_decay", "momentum": "muon_momentum", "nesterov": "muon_nesterov", "ns_steps": "muon_ns_steps",
        "adjust_lr_fn": "muon_adjust_lr_fn", "fallback_betas": "adam_betas", "fallback_eps": "adam_epsilon",
    },
}  # fmt: skip
"""Keys of an entry of `optimizers:` -> those of `train:`."""
FIXED = {"ns_coefficients": [3.4445, -4.775, 2.0315], "eps": 1e-7}
"""Settings of Muon: torch's own values, and no others."""
SAMPLERS = ("group_tiled", "subgroup_tile", "global_random", "contiguous_shard", "rank_local", "global_batch", "global_tile")
IDLE = {
    "replay_rtol": "what is trained on is computed as it was rolled out",
    "replay_atol": "what is trained on is computed as it was rolled out",
    "shuffle_samples": "micro-batches keep the order in which they were drawn",
    "reward_optimization_overlap_mode": "groups are trained on in the order in which they were drawn",
    "reward_optimization_overlap_poll_interval": "a score that is there is used at once",
}
"""Keys of `train:` that do nothing here, and why."""
ABSENT_IF_NULL = ("num_frames", "frame_rate")
"""Arguments of video pipelines that public files of every model carry along as null."""


def bring_public_keys(source: Source) -> None:
    """Moves, drops or refuses what only the public files have; adds a notice where something has no effect."""
    for step in (_offline, _optimizers, _acceleration, _dtypes, _sampler, _training, _rewards):
        step(source)


def _offline(source: Source) -> None:
    """The public trainer of given pairs, whose batches count pairs."""
    tree = source.mapping("train")
    if str(tree.get("trainer_type")).lower().replace("_", "-") != "offline-dpo":
        return
    tree |= {"trainer_type": "dpo", "offline": True}
    for key in ("group_size", "per_device_batch_size"):
        if (value := tree.get(key, 2)) != 2:
            source.notices.append(f"train.{key}: {show(value)} -> 2: a pair is a group of two, in a forward of its own")
        tree[key] = 2


# -- optimizers ---------------------------------------------------------------------------------------------------------------------------


def _optimizers(source: Source) -> None:
    """The policy's entry, `default` or `generator`, is what `train:` says here."""
    entries = source.tree.get("optimizers")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return
    mine = [k for k, entry in enumerate(entries) if entry.get("name", "default") in ("default", "generator")]
    for k in mine[:1]:
        _of_policy(source, entries[k], ("optimizers", k))
        del entries[k]
        for later in range(k + 1, len(entries) + 1):
            source.move(("optimizers", later), ("optimizers", later - 1))
    if not entries:
        del source.tree["optimizers"]


def _of_policy(source: Source, entry: dict[str, Any], here: Keys) -> None:
    kind = str(entry.get("optimizer", "adamw")).lower()
    fixed = FIXED if kind == "muon" else {}
    names = ANY_OPTIMIZER | OPTIMIZERS.get(kind, OPTIMIZERS["adamw"])
    _moved(source, here, entry, names, ("train",), {"name", "update_frequency", *fixed})
    for key, only in fixed.items():
        if entry.get(key) not in (None, only):
            source.problems.append(Problem((*here, key), f"{show(entry[key])}: torch's Muon is run with {show(only)}; delete this key"))
    if entry.get("update_frequency") not in (None, 1):
        text = f"{show(entry['update_frequency'])}: the policy is trained at every update; write 1"
        source.problems.append(Problem((*here, "update_frequency"), text))


# -- acceleration -------------------------------------------------------------------------------------------------------------------------


def _acceleration(source: Source) -> None:
    """The attention backend and torch.compile are keys of `model:`; what changes rollouts alone is refused."""
    tree = source.tree.pop("acceleration", None)
    if tree is None:
        return
    if not isinstance(tree, dict) or not {*tree} <= {"shared", "rollout"}:
        source.problems.append(Problem(("acceleration",), f"wants shared: and rollout:, got {show(tree)}"))
        return
    for part, entries in tree.items():
        listed = [] if entries is None else entries if isinstance(entries, list) else [entries]
        for k, entry in enumerate(listed):
            here: Keys = ("acceleration", part, k) if isinstance(entries, list) else ("acceleration", part)
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                source.problems.append(Problem(here, f"wants a mapping such as {{name: torch_compile, params: {{}}}}, got {show(entry)}"))
            else:
                _require_known(source, here, entry, ("name", "params"))
                _accelerated(source, here, part, entry)


def _accelerated(source: Source, here: Keys, part: str, entry: Mapping[str, Any]) -> None:
    name, params = entry["name"], entry.get("params") or {}
    known = {"attention_backend": _backend, "torch_compile": _compiled}
    if not isinstance(params, dict):
        source.problems.append(Problem((*here, "params"), f"wants a mapping, got {show(params)}"))
    elif name == "diffusers_cache":
        text = "a cache in the rollout changes what is sampled, so training would not see what sampling saw; delete this entry"
        source.problems.append(Problem(here, f"diffusers_cache: {text}"))
    elif name not in known:
        source.problems.append(Problem((*here, "name"), f"{show(name)} is not offered; known: {', '.join(known)}"))
    elif part == "rollout":
        text = f"{name} for rollouts alone: training would not see what sampling saw; move it to acceleration.shared"
        source.problems.append(Problem(here, text))
    else:
        known[name](source, (*here, "params"), params)


def _backend(source: Source, here: Keys, params: dict[str, Any]) -> None:
    _moved(source, here, params, {"backend": "attn_backend"}, ("model",))


def _compiled(source: Source, here: Keys, params: dict[str, Any]) -> None:
    _require_known(source, here, params, ("mode", "compile_kwargs"))
    if params.get("mode", "auto") not in ("auto", "regional", "full"):
        source.problems.append(Problem((*here, "mode"), f"wants auto, regional or full, got {show(params['mode'])}"))
    if params.get("mode") == "full":
        source.notices.append(f"{_dotted((*here, 'mode'))}: full has no effect: blocks are compiled, which takes less time at the start")
    kwargs = params.get("compile_kwargs") or {}
    if not isinstance(kwargs, dict):
        source.problems.append(Problem((*here, "compile_kwargs"), f"wants a mapping, got {show(kwargs)}"))
        kwargs = {}
    for key, value in kwargs.items():
        if key == "backend":
            _moved(source, (*here, "compile_kwargs"), {key: value}, {"backend": "compile_backend"}, ("model",))
        else:
            source.notices.append(f"{_dotted((*here, 'compile_kwargs', key))} has no effect: each shape of a call is compiled by itself")
    _put(source, here[:-1], True, ("model", "compile"))


# -- dtypes -------------------------------------------------------------------------------------------------------------------------------


def _dtypes(source: Source) -> None:
    """Trained weights have `master_weight_dtype`, all others `mixed_precision`."""
    model = source.mapping("model")
    trained = model.pop("trainable_parameters_dtype", None)
    if trained is not None and not _same(trained, model.get("master_weight_dtype")):
        _put(source, ("model", "trainable_parameters_dtype"), trained, ("model", "master_weight_dtype"))
    precision = source.tree.get("mixed_precision", "bf16")
    for key in ("component_load_dtypes", "frozen_parameters_dtype"):
        given = model.pop(key, None)
        for name, dtype in (given if isinstance(given, dict) else {None: given}).items():
            here: Keys = ("model", key) if name is None else ("model", key, name)
            if dtype is None or _same(dtype, precision):
                continue
            if name == "vae":
                source.notices.append(f"{_dotted(here)}: {show(dtype)} has no effect: the VAE is loaded as its stock pipeline has it")
            else:
                text = f"{show(dtype)} is not offered: frozen parts are loaded in mixed_precision ({show(precision)}); write null"
                source.problems.append(Problem(here, text))


def _same(dtype: Any, precision: Any) -> bool:
    mine, theirs = (
        PRECISIONS.get(str(d).removeprefix("torch."), str(d)) for d in (dtype, "fp32" if precision in ("no", False) else precision)
    )
    return mine == theirs


# -- data and train -----------------------------------------------------------------------------------------------------------------------


def _sampler(source: Source) -> None:
    data = source.mapping("data")
    if data.get("sampler_type") in SAMPLERS:
        source.notices.append(f"data.sampler_type: {data['sampler_type']} has no effect: a group always lives on one process")
        data["sampler_type"] = "auto"
    size = data.pop("sampler_subgroup_size", None)
    if size is not None:
        text = f"{show(size)} has no effect here, where a group lives on one process; write null"
        source.problems.append(Problem(("data", "sampler_subgroup_size"), text))


def _training(source: Source) -> None:
    train = source.mapping("train")
    if type(many := train.get("max_epochs")) is int and many < 0:
        train["max_epochs"] = None
        source.notices.append(f"train.max_epochs: {many} is null here: the run goes on until it is stopped")
    if train.get("ref_param_device") == "same_as_model":
        train["ref_param_device"] = "auto"
    overlaps = train.get("reward_optimization_overlap") is True
    for key in [key for key in IDLE if key in train]:
        del train[key]
        if overlaps or not key.startswith("reward_optimization_overlap"):
            source.notices.append(f"train.{key} has no effect: {IDLE[key]}")
    for section in (train, source.mapping("eval")):
        for key in ABSENT_IF_NULL:
            if section.get(key, False) is None:
                del section[key]


MEANS = {"am": "arithmetic", "gm": "geometric"}


def _rewards(source: Source) -> None:
    """Keys of single rewards."""
    for section in ("rewards", "eval_rewards"):
        entries = source.tree.get(section)
        for k in range(len(entries) if isinstance(entries, list) else 0):
            entry, here = source.mapping(section, k), (section, k)
            name = str(entry.get("reward_model")).lower().replace("_", "")
            if name == "geneval2softtifa":
                entry["reward_model"] = "GenEval2"
                if entry.pop("data_path", None) is not None:
                    source.notices.append(f"{_dotted((*here, 'data_path'))} has no effect: questions are the data set's column vqa_list")
                if (mean := entry.pop("aggregation", None)) is not None:
                    _moved(source, here, {"aggregation": MEANS.get(str(mean), mean)}, {"aggregation": "mean"}, here)
            elif name == "hpsv2" and (version := entry.pop("hps_version", "v2.1")) != "v2.1":
                source.problems.append(Problem((*here, "hps_version"), f"{show(version)} is not offered; write v2.1"))


# -- how ----------------------------------------------------------------------------------------------------------------------------------


def _moved(source: Source, here: Keys, entry: Mapping[str, Any], names: Mapping[str, str], to: Keys, known: Collection[str] = ()) -> None:
    """Moves the keys of a public mapping to ours; null is not a value."""
    _require_known(source, here, entry, {*names, *known})
    for key, value in entry.items():
        if key in names and value is not None:
            _put(source, (*here, key), value, (*to, names[key]))


def _require_known(source: Source, here: Keys, entry: Mapping[str, Any], known: Collection[str]) -> None:
    for key in entry:
        if key not in known:
            source.problems.append(Problem((*here, key), f"unknown key. Known: {', '.join(sorted(known))}"))


def _put(source: Source, old: Keys, value: Any, new: Keys) -> None:
    """Sets a value where nothing else stands; an override of the command line wins."""
    holder, name = source.mapping(*new[:-1]), str(new[-1])
    mark = source.marks.get(new)
    if name not in holder:
        holder[name] = value
        source.move(old, new)
    elif holder[name] != value and (mark is None or mark.order > 0):
        source.problems.append(Problem(old, f"is {show(value)} here and {show(holder[name])} in {_dotted(new)}; keep one"))


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))
