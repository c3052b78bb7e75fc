"""A model, an algorithm, a reward or a tracker of one's own that raises is one line that names it and its line, wherever it is called."""

import logging
import re
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from flow_factory import cli
from flow_factory.algorithms import ALGORITHMS
from flow_factory.models import MODELS
from flow_factory.reporting.trackers import TRACKERS
from flow_factory.rewards import REWARDS
from flow_factory.utils.errors import UserError
from flow_factory.utils.registry import Registry
from tests.tiny.run import write_run


def ff_train(folder: Path, *arguments: str) -> int:
    """The command in this process, which keeps nothing of an earlier run's precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return cli.main([str(write_run(folder)), *arguments])


BODIES = {
    "import sys; sys.exit(0)": r"it ended the program, by SystemExit\(0\)",
    "1 / 0": "ZeroDivisionError: division by zero",
    "import not_there_xyz": "ModuleNotFoundError: No module named 'not_there_xyz'",
    "from flow_factory.models import Nothing": "ImportError: cannot import name 'Nothing'",
    "raise KeyError('x')": "KeyError: 'x'",
    "raise GeneratorExit": "GeneratorExit",
}
REGISTRIES = (MODELS, ALGORITHMS, REWARDS, TRACKERS)


@pytest.mark.parametrize("registry", REGISTRIES, ids=[r.kind for r in REGISTRIES])
def test_a_module_that_raises_at_import_is_named_with_its_line(tmp_path: Path, registry: Registry) -> None:
    for number, (body, message) in enumerate(BODIES.items()):
        (tmp_path / f"raises{number}.py").write_text(f"\n{body}\n")
        with pytest.raises(UserError) as caught:
            registry[f"raises{number}.Mine"]
        said = f"{registry.kind} 'raises{number}.Mine' cannot be imported: {message}"
        assert re.match(rf"{said}.* \({tmp_path}/raises{number}.py:2, in <module>\)$", str(caught.value)), caught.value
    (tmp_path / "torn.py").write_text("x = (\n")
    with pytest.raises(UserError, match=rf"{registry.kind} 'torn.Mine' cannot be imported: SyntaxError: .*torn.py, line 1"):
        registry["torn.Mine"]


@pytest.mark.parametrize("registry", (MODELS, ALGORITHMS), ids=("model", "algorithm"))
def test_what_is_no_class_of_the_kind_is_refused(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "others.py").write_text("class Plain:\n    pass\n\n\ndef function():\n    pass\n")
    for name in ("Plain", "function"):
        with pytest.raises(UserError, match=rf"{registry.kind} 'others.{name}' is not a subclass of \w+ \(flow_factory"):
            registry[f"others.{name}"]


def test_what_a_module_prints_is_no_part_of_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "talks.py").write_text("print('hello')\n\n\nclass Mine:\n    pass\n")
    TRACKERS["talks.Mine"]
    out, err = capsys.readouterr()
    assert out == "" and err == "hello\n"


MODEL = """\
from flow_factory.models.flux1 import Flux1


class Mine(Flux1):
    {hook}
        raise KeyError("mine")
"""
ALGORITHM = """\
from flow_factory.algorithms.grpo import GRPO


class Mine(GRPO):
    {hook}
        raise KeyError("mine")
"""
HOOKS = {
    "model's constructor": ("model.model_type", MODEL, "def __init__(self, pipe):"),
    "model's sizes": ("model.model_type", MODEL, "def check_call(self, call):"),
    "model's rows": ("model.model_type", MODEL, "@classmethod\n    def check_row(cls, row):"),
    "algorithm's constructor": ("train.trainer_type", ALGORITHM, "def __init__(self, *given):"),
    "algorithm's steps": ("train.trainer_type", ALGORITHM, "def noisy(self, epoch, group):"),
    "algorithm's loss": ("train.trainer_type", ALGORITHM, "def loss(self, point, velocity):"),
}


@pytest.mark.parametrize("case", HOOKS)
def test_a_hook_that_raises_is_one_line_and_a_trace_where_that_is_asked_for(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    key, text, hook, verbose = *HOOKS[case], "constructor" in case
    (tmp_path / "mine.py").write_text(text.format(hook=hook))
    with caplog.at_level(logging.NOTSET, "flow_factory"):  # which the command sets
        assert ff_train(tmp_path, f"{key}=mine.Mine", "eval.eval_freq=0", f"log.verbose={verbose}") == 1
    said = capsys.readouterr().err
    (line,), kind = re.findall(r"^error: .*", said, re.MULTILINE), case.partition("'")[0]
    assert re.match(rf"error: {kind} 'mine.Mine': KeyError: 'mine' \({tmp_path}/mine.py:\d+, in \w+\)$", line), said
    assert "Traceback" not in said and [bool(r.exc_info) for r in caplog.records if "the cause of it" in r.getMessage()] == [True] * verbose


def test_a_hook_that_ends_the_program_does_not_end_it_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "leaves.py").write_text(MODEL.format(hook="def check_call(self, call):").replace("raise KeyError", "raise SystemExit"))
    assert ff_train(tmp_path, "model.model_type=leaves.Mine") == 1
    assert "error: model 'leaves.Mine': it ended the program, by SystemExit('mine')" in capsys.readouterr().err


def test_an_error_of_the_programs_own_keeps_its_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("flow_factory.train.make_schedule", broken)
    (tmp_path / "mine.py").write_text(MODEL.format(hook="def unused(self):"))
    with pytest.raises(KeyError, match="ours"):
        ff_train(tmp_path, "model.model_type=mine.Mine", "eval.eval_freq=0")
