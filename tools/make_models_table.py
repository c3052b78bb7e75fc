"""Writes the table of pipelines in guidance/models.md, from runs on tiny random checkpoints with the installed diffusers.

    python tools/make_models_table.py [CASE ...]      the rows of these cases of tests/tiny/breadth; without names, of all

Each case is tried as `tests/models/test_breadth.py` does: a rollout and its replay in float32 and in bfloat16, two epochs of GRPO and of
DiffusionNFT, and the saved LoRA read back by the stock classes. Takes some ten minutes for all.
"""

import inspect
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import torch
from accelerate.state import AcceleratorState
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from flow_factory.checkpoints.lora_file import knows_transformers  # noqa: E402
from flow_factory.models import MODELS  # noqa: E402
from flow_factory.models.base import ModelAdapter  # noqa: E402
from flow_factory.models.guiders import GUIDER  # noqa: E402
from flow_factory.models.pipeline_facts import lacking  # noqa: E402
from flow_factory.utils.errors import UserError  # noqa: E402
from tests.models.breadth import read_back, replayed, run_of, small  # noqa: E402
from tests.tiny.breadth import CASES, Case  # noqa: E402
from tests.tiny.run import trained  # noqa: E402

PAGE = ROOT / "guidance" / "models.md"
BEGIN, END = "<!-- pipelines: tools/make_models_table.py -->", "<!-- end of pipelines -->"
HEAD = """\
| pipeline | data columns | replay | trains | LoRA read back by | default LoRA targets | guidance off by | samples a call |
|---|---|---|---|---|---|---|---|"""

NOT_TRIED = {
    "SanaWMPipeline": "it asks for camera poses, which no column of a data set is",
    "CosmosTextToWorldPipeline": "cosmos_guardrail is not installed here",
    "CosmosVideoToWorldPipeline": "cosmos_guardrail is not installed here",
}
"""Pipelines without a case -> why."""


def tried(case: Case, folder: Path) -> str:
    """The case's line of the table."""
    columns = ", ".join(f"`{name}`" for name in case.columns) or "text"
    try:
        trains = [trainer for trainer in ("grpo", "nft") if moves(case, folder, trainer)]
        errors = [replayed(case, folder, dtype) for dtype in ("fp32", "bf16")]
    except UserError as error:
        before, _, after = " ".join(str(error).split()).partition("train.jsonl:1: ")
        said = (after or before).removeprefix(f"model_type: diffusers cannot train {case.pipeline}: ")
        return f"| {name_of(case)} | {columns} | refused: {said.partition('; an adapter of your own')[0]} | | | | | |"
    off = [error for error, _, _ in errors]
    _, adapter, cond = errors[0]
    exact = "exact" if not any(off) else f"off by {max(off):.0e}"
    targets = ", ".join(sorted({target.rpartition(".")[2] if not target.endswith(".0") else target for target in targets_of(adapter)}))
    most = cond["form"]["most"] or "any"
    cells = [name_of(case), columns, exact, ", ".join(trains), reader(adapter), targets, guidance(adapter, case), str(most)]
    return f"| {' | '.join(cells)} |"


def moves(case: Case, folder: Path, trainer: str) -> bool:
    """Whether two epochs change the LoRA, and the stock classes read what was saved."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = run_of(case, folder, trainer)
    before = trained(run)
    run()
    found, written = read_back(run, folder, trainer)
    return found == written and any(not torch.equal(before[key], weight) for key, weight in trained(run).items())


def targets_of(adapter: ModelAdapter) -> tuple[str, ...]:
    return type(adapter).targets_in(adapter.field.bare["transformer"])


def reader(adapter: ModelAdapter) -> str:
    """Whose method loads the LoRA, see `stock.put_weights`."""
    if not hasattr(adapter.field.bare["transformer"], "load_lora_adapter"):
        return "peft"
    return "the pipeline" if knows_transformers(adapter.pipe) else "the transformer"


def guidance(adapter: ModelAdapter, case: Case) -> str:
    """The argument that turns classifier-free guidance off."""
    if GUIDER in adapter.with_guidance(case.call, 1.0):
        return "its guider"
    return f"`{adapter.cfg}: {adapter.unguided:g}`" if adapter.cfg in adapter.parameters else "-"


def name_of(case: Case) -> str:
    """The pipeline; the case too, where there are several of it."""
    several = sum(other.pipeline == case.pipeline for other in CASES.values()) > 1
    return f"{case.pipeline} ({case.name})" if several else case.pipeline


def others() -> list[str]:
    """Rows of the flow-matching pipelines of diffusers that are neither a case nor a family's: the reason, from the class alone."""
    ours = {case.pipeline for case in CASES.values()} | {MODELS[name].pipeline.rpartition(":")[2] for name in MODELS.table}
    rows = []
    for name in sorted(name for name in dir(diffusers) if name.endswith("Pipeline") and name not in ours):
        kind = getattr(diffusers, name)
        if "FlowMatchEuler" not in inspect.getsource(sys.modules[kind.__module__]):
            continue
        call, parts = (inspect.signature(inspect.unwrap(f)).parameters for f in (kind.__call__, kind.__init__))
        reason = lacking(kind, parts, call)
        said = f"not tried: {NOT_TRIED[name]}" if name in NOT_TRIED else f"refused: {reason}" if reason else "not tried"
        rows.append(f"| {name} | | {said} | | | | | |")
    return rows


def row_name(line: str) -> str:
    """The first cell of a row."""
    return line.removeprefix("| ").partition(" |")[0]


def write(lines: list[str]) -> None:
    """Puts the rows into the page's table; those of other cases stay."""
    known, made = {name_of(case) for case in CASES.values()}, {row_name(line) for line in lines}
    before = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()
    lines = lines + [line for line in before if row_name(line) in known - made] + others()
    count = sum("| grpo, nft |" in line for line in lines)
    said = f"With diffusers {diffusers.__version__}: {count} of {len(lines)} ways of calling a pipeline replay, train and are read back."
    text = PAGE.read_text()
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(f"{text[:begin]}\n{said}\n\n{HEAD}\n" + "\n".join(sorted(lines)) + f"\n{text[end:]}")


def main() -> None:
    warnings.filterwarnings("ignore")
    lines = []
    for name in tqdm(sys.argv[1:] or sorted(CASES), desc="pipelines"):
        case = CASES[name]
        with TemporaryDirectory() as folder, small(case):
            missing = case.missing()
            lines.append(tried(case, Path(folder)) if missing is None else f"| {name_of(case)} | | not tried: {missing} | | | | | |")
    write(lines)


if __name__ == "__main__":
    main()
