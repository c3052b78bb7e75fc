"""LoRA files as copies of the run's own LoRA: the same function in another form, and what does not fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.checkpoints.given_lora import read_given
from flow_factory.checkpoints.lora_file import LORA_FILE, Lora
from flow_factory.checkpoints.lora_fit import Form, as_own, require_fit

MODEL = {"a.to_q": (6, 4), "a.to_k": (5, 4), "b.proj": (4, 6)}
KEY = "train.teachers.0.path"
OWN = Form(lambda layer: 2, lambda layer: 2.0)


def lora(rank: int = 2, alpha: float | None = 4.0, layers: tuple[str, ...] = ("a.to_q", "b.proj"), seed: int = 0) -> Lora:
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in layers:
        out, into = MODEL.get(name, (3, 3))
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, into, generator=g)
        tensors[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=g)
    return Lora(tensors, alpha)


def change(tensors: dict[str, Tensor], layer: str, scale: float) -> Tensor:
    """What a LoRA adds to a layer's weight."""
    return scale * tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]


@pytest.mark.parametrize(("rank", "alpha"), [(2, 4.0), (1, 4.0), (2, 1.0), (1, None)])
def test_a_lora_of_another_rank_scale_or_choice_of_layers_is_the_same_function(rank: int, alpha: float | None) -> None:
    saved = lora(rank, alpha)
    own = as_own(saved, {name: t.shape for name, t in lora(2, 4.0, tuple(MODEL)).tensors.items()}, lambda layer: 2.0)
    for layer in MODEL:
        if layer == "a.to_k":
            assert not change(own, layer, 2.0).any(), "which the saved one leaves as it is"
            continue
        torch.testing.assert_close(change(own, layer, 2.0), change(dict(saved.tensors), layer, saved.scale_of(layer)))
    if (rank, alpha) == (2, 4.0):
        assert all(torch.equal(own[name], t) for name, t in saved.tensors.items())


UNFIT = [
    (lora(4), r"does not fit: it has rank 4, and this run's LoRA 2; write model.lora_rank: 4 or more"),
    (lora(2, 4.0, ("c.to_q", "c.to_v")), r"does not fit: it is of another model, with c.to_q, c.to_v"),
    (lora(2, 4.0, ("a.to_k",)), r"does not fit: model.target_modules leaves out layers that it is of: a.to_k; add them"),
    (Lora({"a.to_q.lora_A.weight": torch.ones(2, 4), "a.to_q.lora_B.weight": torch.ones(9, 2)}, 4.0),
     r"it is of another model: a.to_q is 4 -> 9 there, and 4 -> 6 here"),
    (Lora({**lora(4).tensors, **lora(1, 4.0, ("a.to_k",)).tensors}, 4.0), r"it has rank 4, and this run's LoRA 2"),
    (Lora({"a.to_q.lora_A.weight": torch.ones(2, 4)}, 4.0), r"a.to_q lacks"),
]  # fmt: skip


@pytest.mark.parametrize(("saved", "said"), UNFIT)
def test_a_lora_that_does_not_fit_is_refused_with_what_would(saved: Lora, said: str) -> None:
    chosen = {name: MODEL[name] for name in ("a.to_q", "b.proj")}
    with pytest.raises(CheckpointError, match=rf"{KEY}: saves/ocr does not fit: .*{said.removeprefix('does not fit: ')}"):
        require_fit(KEY, "saves/ocr", saved, OWN, MODEL, chosen)
    require_fit(KEY, "saves/ocr", lora(1, None), OWN, MODEL, chosen)
    require_fit(KEY, "saves/ocr", lora(), OWN, {}, {})


def test_a_file_that_is_none_is_said_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / LORA_FILE).write_bytes(b"no tensors")
    save_file(dict(lora().tensors), tmp_path / "fine.safetensors")
    for name, said in (
        ("nowhere", "is not a folder or file; name a safetensors file of a LoRA, its folder, or a run's folder"),
        ("empty", "has no LoRA of transformer"),
        ("damaged", "is damaged"),
    ):
        with pytest.raises(CheckpointError, match=rf"^{KEY}: .*{said}"):
            read_given(KEY, str(tmp_path / name), "transformer")
    assert read_given(KEY, str(tmp_path / "fine.safetensors"), "transformer").ranks == [2]
