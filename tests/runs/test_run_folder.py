"""A run's folder has one owner and one history; a start that is refused leaves it to the byte as it was."""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from flow_factory.checkpoints.lora_file import LORA_FILE
from flow_factory.config import load_config
from flow_factory.runs.ended import why_over
from flow_factory.runs.preflight import ready
from flow_factory.runs.resume import Finished, find_start, start_lines
from flow_factory.runs.run_folder import LOCK, RunFolder, archive_later_checkpoints, default_name
from flow_factory.train import build
from flow_factory.utils.errors import UserError
from tests.tiny.killed import trap
from tests.tiny.patience import output
from tests.tiny.run import logged, started, tiny, trained, write_run

STATES = ("log.save_model_only=false", "log.save_freq=1", "eval.eval_freq=0")


def tree(folder: Path) -> dict[str, str]:
    """All that is in a folder, with the digests of its files, but for the cache: the rows that a start has encoded are right for others."""
    paths = [p for p in folder.rglob("*") if "cache" not in p.relative_to(folder).parts]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in paths}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two epochs, and its YAML."""
    folder = tmp_path_factory.mktemp("ended")
    tiny(folder, *STATES)()
    return folder


@pytest.fixture
def home(tmp_path: Path, ended: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the current folder."""
    shutil.copytree(ended, tmp_path, dirs_exist_ok=True)
    shutil.copytree(ended / "save" / "run", tmp_path / "save" / "elsewhere")
    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- refused starts ----------------------------------------------------------------------------------------------------------------

OWN = "model.resume_path=save/run"
MORE = (OWN, "train.max_epochs=3")
REFUSED = {
    "another run's name": ((), "save/run holds a run already: choose another run_name, or resume with model.resume_path="),
    "another run's checkpoint": (("model.resume_path=save/elsewhere", "train.max_epochs=3"), "save/run holds a run already"),
    "finished": ((OWN,), "epoch_2 has 2 epochs, and train.max_epochs is 2: nothing is left to do; raise it to continue"),
    "finished auto": (("model.resume_path=auto",), "nothing is left to do"),
    "finished in another folder": ((OWN, "run_name=new"), "nothing is left to do"),
    "gone": (("model.resume_path=gone", "run_name=new"), "gone is not a checkpoint .no such folder or file."),
    "no checkpoint": (("model.resume_path=data", "run_name=new"), "data is not a checkpoint"),
    "rank": ((*MORE, "model.lora_rank=4"), "another run: model.lora_rank was 8, and is 4"),
    "alpha": ((*MORE, "model.lora_alpha=64"), "another run: model.lora_alpha was 16, and is 64"),
    "scale": ((*MORE, "model.use_rslora=true"), "another run: model.use_rslora was false, and is true"),
    "algorithm": ((*MORE, "train.trainer_type=awm"), "another run: train.trainer_type"),
    "no average": ((*MORE, "train.ema_decay=0"), "does not fit this run: the saved copies"),
    "targets": ((*MORE, "model.target_modules=[attn.to_q]"), "does not fit this run: first at"),
    "all weights": ((*MORE, "model.master_weight_dtype=fp32", "model.finetune_type=full"), "another run: model.finetune_type"),
    "weights alone in their folder": ((OWN, "model.resume_type=lora"), "save/run cannot go on from .*epoch_2: of it weights are loaded"),
    "no such layer": (("run_name=new", "model.target_modules=attn.to_w"), "fits no linear layer"),
    "no such tracker": (("run_name=new", "log.logging_backend=swanlab"), "swanlab, which is not installed"),
    "no such tracker later": ((*MORE, "log.logging_backend=tests.runs.test_run_folder.Unwilling"), "not today"),
    "an untidy tracker": (("run_name=new", "log.logging_backend=tests.runs.test_run_folder.Untidy"), "not today"),
    "out of save_dir": (("run_name=../new",), "log.run_name: '../new' is not inside log.save_dir"),
    "out of save_dir, absolute": (("run_name=/tmp/new",), "log.run_name: '/tmp/new' is not inside"),
    "save_dir itself": (("run_name=.",), "log.run_name: '.' is not inside"),
    "a new save_dir": (("log.save_dir=deep/down", "model.target_modules=attn.to_w"), "fits no linear layer"),
    "a file as save_dir": (("log.save_dir=tiny.yaml",), "log.save_dir: .*tiny.yaml.*: "),
}  # fmt: skip


class Unwilling:
    """A tracker that does not start."""

    def __init__(self, *given: object):
        raise UserError("not today")


class Untidy(Unwilling):
    """One that has written by then."""

    def __init__(self, project: str, run_name: str, run_dir: Path, config: object):
        (run_dir / "logs").mkdir()
        super().__init__()


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_start_changes_no_byte(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "swanlab", None)
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    keys, message = REFUSED[name]
    before = tree(home)
    with pytest.raises((UserError, Finished), match=message) as error:
        tiny(home, *STATES, *keys)
    assert "\n" not in str(error.value)
    assert tree(home) == before


def test_weights_alone_are_not_emptied_by_auto(tmp_path: Path) -> None:
    tiny(tmp_path)()
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"save/run cannot go on from \S+epoch_2: of it weights are loaded, and no training state"):
        tiny(tmp_path, *STATES, "model.resume_path=auto")
    assert tree(tmp_path) == before


def test_another_base_model_is_refused(home: Path) -> None:
    """Of the same architecture, and as large; the same one elsewhere is the same."""
    config = load_config(home / "tiny.yaml", [*STATES, *MORE])
    shutil.copytree(config.model.model_name_or_path, home / "other")
    (file,) = (home / "other" / "transformer").glob("*.safetensors")
    tensors = {name: t.clone() for name, t in load_file(file).items()}
    save_file(tensors | {"proj_out.weight": tensors["proj_out.weight"] * 1.01}, file)
    before = tree(home)
    with pytest.raises(UserError, match="another run: model.model_name_or_path has other weights than it was trained on"):
        tiny(home, *STATES, *MORE, "model.model_name_or_path=other")
    assert tree(home) == before
    shutil.rmtree(home / "other")
    shutil.copytree(config.model.model_name_or_path, home / "other")
    tiny(home, *STATES, *MORE, "model.model_name_or_path=other")


@pytest.mark.parametrize(("file", "text", "message"), [
    ("save/run/metrics.jsonl", b'{"step": 1}\nno\n', "metrics.jsonl is damaged: ValueError: .*metrics.jsonl:2: not JSON"),
    ("save/run/metrics.jsonl", b"[1]\n", "metrics.jsonl is damaged: ValueError: .*metrics.jsonl:1: no metrics of a step"),
    ("save/run/metrics.jsonl", b"\xff\n", "metrics.jsonl is damaged: UnicodeDecodeError"),
    ("save/run/monitor.jsonl", b"x\n", "monitor.jsonl is damaged: ValueError: .*monitor.jsonl:1: not JSON"),
    ("save/run/monitor.jsonl", b"{}\n", "monitor.jsonl is damaged: ValueError: .*monitor.jsonl:1: no alarm of a step"),
    ("other/transformer/diffusion_pytorch_model.safetensors", b"no", "diffusion_pytorch_model.safetensors is damaged: "),
    ("other/transformer/diffusion_pytorch_model.safetensors", b"\xff" * 40, "diffusion_pytorch_model.safetensors is damaged: "),
])  # fmt: skip
def test_a_damaged_file_is_named_and_nothing_changes(home: Path, file: str, text: bytes, message: str) -> None:
    shutil.copytree(load_config(home / "tiny.yaml").model.model_name_or_path, home / "other")
    (home / file).write_bytes(text)
    before = tree(home)
    with pytest.raises(UserError, match=message) as error:
        tiny(home, *STATES, *MORE, "model.model_name_or_path=other")
    assert "\n" not in str(error.value)
    assert tree(home) == before


# -- one owner ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def children(count: int, work: Callable[[int], str]) -> Iterator[list[str]]:
    """What `count` processes say of the same work, which they begin at once; they live on inside the context."""
    pipes, pids, go = [], [], os.pipe()
    for number in range(count):
        pipes.append(os.pipe())
        pids.append(os.fork())
        if not pids[-1]:
            os.read(go[0], 1)
            try:
                said = work(number)
            except UserError as error:
                said = f"refused: {error}"
            os.write(pipes[-1][1], said.encode())
            signal.pause()
    os.write(go[1], b"." * count)
    try:
        yield [os.read(read, 4096).decode() for read, _ in pipes]
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


CLAIMS: list[RunFolder] = []


def claimed(path: Path, new: bool = False) -> str:
    CLAIMS.append(RunFolder(path, new))
    CLAIMS[-1].begin(load_config(path.parents[1] / "tiny.yaml"))
    return CLAIMS[-1].path.name


@pytest.mark.parametrize("count", [2, 4, 8])
def test_of_starts_at_once_in_one_folder_one_goes_on(tmp_path: Path, count: int) -> None:
    """A killed one leaves the folder free."""
    write_run(tmp_path)
    folder = tmp_path / "save" / "run"
    with children(count, lambda _: claimed(folder)) as said:
        lost = [text for text in said if text != "run"]
        assert len(lost) == count - 1, said
        assert all(text.startswith(f"refused: {folder} is in use by another run") for text in lost)
        with pytest.raises(UserError, match=r"is in use by another run \(process \d+ on .*\); choose another run_name"):
            RunFolder(folder)
    claim = RunFolder(folder)
    claim.begin(load_config(tmp_path / "tiny.yaml"))
    claim.release()
    assert not (folder / LOCK).exists()


def test_of_starts_at_once_without_a_name_each_has_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of them is asked all that a start is."""
    config = load_config(write_run(tmp_path))
    monkeypatch.setattr("time.strftime", lambda *_: "now")
    name = tmp_path / "save" / default_name(config)
    with children(8, lambda _: claimed(name, new=True)) as said:
        assert sorted(said) == sorted([name.name, *(f"{name.name}_{k}" for k in range(2, 9))])
        assert tiny(tmp_path, "run_name=null").folder.name == f"{name.name}_9"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codes"), [("run", [0, 2]), ("null", [0, 0])])
def test_two_commands_at_once_lose_no_line(tmp_path: Path, name: str, codes: list[int]) -> None:
    write_run(tmp_path)
    command = [sys.executable, "-m", "flow_factory", "tiny.yaml", f"run_name={name}", "log.save_freq=1"]
    with started(command, tmp_path) as one, started(command, tmp_path) as other:
        said = [output(run, tmp_path)[1].splitlines() for run in (one, other)]
    assert sorted(run.returncode for run in (one, other)) == codes
    for run, lines in zip((one, other), said, strict=True):
        errors = [line for line in lines if line.startswith("error: ") or "Traceback" in line]
        assert len(errors) == (run.returncode == 2) and all("save/run " in line for line in errors)
    folders = list((tmp_path / "save").iterdir())
    assert len(folders) == codes.count(0)
    for folder in folders:
        assert [line["step"] for line in logged(folder)] == [0, 1, 1, 2, 2]
        assert epochs(folder) == ["epoch_1", "epoch_2"] and not (folder / LOCK).exists()


def test_a_folder_is_its_runs_until_it_ends(tmp_path: Path) -> None:
    run = tiny(tmp_path, *STATES, "train.max_epochs=1")
    before = tree(run.folder)

    def start(_: int) -> str:
        build(load_config(tmp_path / "tiny.yaml", [*STATES, "model.resume_path=auto"]))
        return "started"

    with children(1, start) as (said,):
        assert said.startswith(f"refused: {run.folder} is in use by another run (process {os.getpid()} on ")
    assert tree(run.folder) == before
    run()
    assert not (run.folder / LOCK).exists()


# -- one history -------------------------------------------------------------------------------------------------------------------


def epochs(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def test_going_on_from_an_earlier_checkpoint_sets_the_later_ones_aside(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = home / "save" / "run"
    seen = logged(run)
    keys = ("train.max_epochs=2", "train.seed=7", "log.keep_last_n=1", "model.resume_path=save/run/checkpoints/epoch_1")
    tiny(home, *STATES, *keys)()
    said = capsys.readouterr().err
    assert "note: train.seed was 42 and is 7\n" in said
    assert f"note: goes on after epoch 1: epoch_2, and the metrics since, are set aside in {run}/checkpoints/abandoned-1\n" in said
    assert epochs(run) == ["abandoned-1", "epoch_2"], "what was just written stays"
    aside = run / "checkpoints" / "abandoned-1"
    assert logged(aside) == seen[1:] and (aside / "epoch_2" / "state").is_dir()
    lines = logged(run)
    assert [line["step"] for line in lines] == [1, 2] and lines[0] == seen[0] and lines[1] != seen[1]
    again = tiny(home, *STATES, OWN, "train.seed=7", "train.max_epochs=4")
    wanted = json.loads((run / "checkpoints/epoch_2/state/progress.json").read_text())
    assert again.context.progress.updates == wanted["updates"] and wanted["run"]["may"]["train.seed"] == 7
    with pytest.raises(UserError, match="was set aside when .*/run was resumed from an earlier one: choose another run_name"):
        tiny(home, *STATES, f"model.resume_path={aside / 'epoch_2'}", "train.max_epochs=4")
    assert tiny(home, *STATES, f"model.resume_path={aside / 'epoch_2'}", "train.max_epochs=4", "run_name=b").context.progress.epoch == 2


def cut_at(rename: int, folder: Path, epoch: int) -> None:
    """Sets the later checkpoints aside in a process that is killed before one of its renames."""
    child = os.fork()
    if not child:
        trap("pathlib:Path.rename", rename, partial(os.kill, os.getpid(), signal.SIGKILL))
        archive_later_checkpoints(folder, epoch)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("first", range(1, 5))
def test_a_kill_between_two_renames_leaves_no_abandoned_checkpoint_to_be_taken_up(home: Path, first: int) -> None:
    """Of the three later checkpoints none, some or all are moved, and then again by a start that is killed as well."""
    run = home / "save" / "run"
    for later in (3, 4):
        shutil.copytree(run / "checkpoints" / "epoch_2", run / "checkpoints" / f"epoch_{later}")
    saved, seen = tree(run / "checkpoints"), logged(run)
    auto, newest = (load_config(home / "tiny.yaml", [*STATES, "train.max_epochs=5", f"model.resume_path={path}"]) for path in ("auto", run))
    cut_at(first, run, epoch=1)
    for again in (None, 1, 2):  # the second start names the folder anew before it moves the rest
        if again is not None:
            cut_at(again, run, epoch=1)
        assert find_start(auto).path == find_start(newest).path == run / "checkpoints" / "epoch_1"
    assert (
        archive_later_checkpoints(run, 1)
        == f"goes on after epoch 1: epoch_2 to epoch_4, and the metrics since, are set aside in {run}/checkpoints/abandoned-1"
    )
    assert epochs(run) == ["abandoned-1", "epoch_1"]
    aside = run / "checkpoints" / "abandoned-1"
    assert logged(aside) == seen[1:]
    assert tree(aside).items() >= {(path, digest) for path, digest in saved.items() if not path.startswith("epoch_1")}
    assert find_start(auto).path == run / "checkpoints" / "epoch_1"


def test_a_start_that_was_cut_while_it_set_checkpoints_aside_goes_on(home: Path) -> None:
    """Or another epoch is named: what is abandoned is asked anew."""
    run = home / "save" / "run"
    for later in (3, 4):
        shutil.copytree(run / "checkpoints" / "epoch_2", run / "checkpoints" / f"epoch_{later}")
    cut_at(2, run, epoch=1)
    assert epochs(run) == [".abandoned-1-after-1", "epoch_1", "epoch_2", "epoch_3"]
    cut_at(2, run, epoch=2)
    auto = load_config(home / "tiny.yaml", [*STATES, "train.max_epochs=5", "model.resume_path=auto"])
    assert find_start(auto).path == run / "checkpoints" / "epoch_2"
    tiny(home, *STATES, "model.resume_path=save/run/checkpoints/epoch_1", "log.save_freq=0")()
    assert epochs(run) == ["abandoned-1", "epoch_1", "epoch_2"]
    assert sorted(p.name for p in (run / "checkpoints" / "abandoned-1").iterdir()) == ["epoch_2", "epoch_3", "epoch_4", "metrics.jsonl"]


def test_a_state_without_a_name_goes_on_in_its_own_folder(home: Path) -> None:
    """Which is what Ctrl-C advises: so the run's first evaluation stays what it is compared with."""
    for path in ("save/run", "save/run/checkpoints/epoch_2"):
        run = tiny(home, *STATES, "run_name=null", f"model.resume_path={path}", "train.max_epochs=3")
        assert run.folder.resolve() == home / "save" / "run" and run.context.progress.epoch == 2
    away = tiny(home, *STATES, "run_name=null", OWN, "train.max_epochs=3", "log.save_dir=mine")
    assert away.folder.parent == Path("mine"), "but not in somebody else's"


def test_what_differs_and_may_is_a_line_each(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (home / "data" / "train.jsonl").open("a") as file:
        file.write('{"prompt": "another"}\n')
    tiny(home, *STATES, *MORE, "train.group_size=2", "train.unique_sample_num_per_epoch=4", "train.resolution=48", "train.seed=1")
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")] == [
        "note: data.dataset_dir has other rows than before",
        "note: train.seed was 42 and is 1",
        "note: train.height was 32 and is 48",
        "note: train.width was 32 and is 48",
        "note: train.group_size was 4 and is 2",
        "note: train.unique_sample_num_per_epoch was 2 and is 4",
    ]


def test_a_lower_learning_rate_is_in_effect_at_the_first_update(home: Path) -> None:
    """A ten-thousandth: the weights hardly move, and the unchanged config's do."""
    moved = {}
    for rate in (1e-3, 1e-7):
        run = tiny(home, *STATES, OWN, "train.max_epochs=3", f"train.learning_rate={rate}", "log.save_freq=0")
        before = trained(run)
        run.trainer.epoch()
        moved[rate] = max(float((after - before[k]).abs().max()) for k, after in trained(run).items())
        assert run.context.schedule.get_last_lr() == [rate]
    assert moved[1e-7] < 1e-3 * moved[1e-3]


def test_the_config_of_the_folder_is_the_running_ones_and_no_earlier_summary_says_that_it_has_ended(home: Path) -> None:
    assert why_over(load_config(home / "tiny.yaml", [*STATES, OWN]))
    tiny(home, *STATES, *MORE, "train.learning_rate=1e-5")
    assert "learning_rate: 1.0e-05" in (home / "save/run/config.yaml").read_text()
    assert not why_over(load_config(home / "tiny.yaml", [*STATES, OWN])), "the last checkpoint comes before its evaluation"


# -- a check says the same ---------------------------------------------------------------------------------------------------------


def test_a_check_says_what_a_start_would_do(home: Path) -> None:
    def said(*keys: str) -> list[str]:
        found = ready(load_config(home / "tiny.yaml", [*STATES, *keys]))
        return [str(found.finished)] if found.finished else start_lines(found.requested, found.start, found.changed)

    before, last = tree(home), "save/run/checkpoints/epoch_2"
    run = home / "save" / "run"
    assert said("run_name=new") == [f"a new run, in {home}/save/new"]
    assert said("run_name=null") == [f"a new run, in a new folder in {home}/save"]
    assert said(*MORE, "train.seed=1") == [f"resumes from {last}, after epoch 2, in {run}", "train.seed was 42 and is 1"]
    assert said(f"model.resume_path={last}", "model.resume_type=lora", "run_name=b") == [
        f"a new run from the weights of {last}, in {home}/save/b"
    ]
    assert said(OWN) == [f"{last} has 2 epochs, and train.max_epochs is 2: nothing is left to do; raise it to continue"]
    for name in ("another run's name", "rank", "gone", "weights alone in their folder", "out of save_dir", "a file as save_dir"):
        with pytest.raises(UserError, match=REFUSED[name][1]):
            said(*REFUSED[name][0])
    with children(1, lambda _: claimed(run)), pytest.raises(UserError, match="is in use by another run"):
        said(*MORE)
    assert not (before.keys() ^ tree(home).keys()) - {"save/run/.lock", "save/run/summary.md"}, "but what the other run has begun with"


def test_a_lora_of_a_higher_rank_is_refused_before_anything_is_loaded(home: Path) -> None:
    (home / "lora").mkdir()
    shutil.copy(home / "save/run/checkpoints/epoch_2" / LORA_FILE, home / "lora" / "mine.safetensors")
    keys = ["run_name=b", "model.resume_path=lora/mine.safetensors"]
    assert find_start(load_config(home / "tiny.yaml", keys)).kind == "lora"
    with pytest.raises(UserError, match="mine.safetensors does not fit: it has rank 8, and this run's LoRA 4; write model.lora_rank: 8"):
        ready(load_config(home / "tiny.yaml", [*keys, "model.lora_rank=4"]))


def test_a_checkpoint_in_the_current_folder_is_of_the_run_that_it_lies_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a path of one part, or with `..`; a copy elsewhere is of no run."""
    shutil.copytree("save/run/checkpoints/epoch_2", "epoch_2")

    def start(path: str, name: str) -> tuple[Path | None, bool]:
        found = find_start(
            load_config(home / "tiny.yaml", [*STATES, "train.max_epochs=3", f"run_name={name}", f"model.resume_path={path}"])
        )
        return found.folder, found.resumes

    assert start("epoch_2", "b") == (home / "save/b", False)
    with pytest.raises(Finished, match="epoch_2 has 2 epochs, and train.max_epochs is 2"):
        find_start(load_config(home / "tiny.yaml", [*STATES, "run_name=b", "model.resume_path=epoch_2"]))
    monkeypatch.chdir("save/run/checkpoints")
    assert start("epoch_2", "run") == start("../checkpoints/epoch_2", "null") == start("epoch_2", "null") == (home / "save/run", True)


def test_what_the_yaml_does_not_say_of_a_lora_is_found_in_its_file(home: Path) -> None:
    """Its rank, its alpha and its layers; without an alpha that is the rank."""
    whole = load_file(home / "save/run/checkpoints/epoch_2" / LORA_FILE)
    some = {name: t[:4] if ".lora_A." in name else t[:, :4] for name, t in whole.items() if "attn.to_q" in name}
    (home / "few").mkdir()
    save_file({name: t.contiguous() for name, t in some.items()}, home / "few" / "mine.safetensors")
    text = (home / "tiny.yaml").read_text()
    (home / "few.yaml").write_text(text.replace("  target_modules: default\n", ""))
    keys = ["run_name=b", "model.resume_path=few/mine.safetensors"]
    model = ready(load_config(home / "few.yaml", keys)).requested.model
    assert (model.lora_rank, model.lora_alpha, model.target_modules) == (4, 4, ("attn.to_q",)) and not model.rank_pattern
    model = ready(
        load_config(home / "few.yaml", [*keys, "model.lora_rank=16", "model.target_modules=[attn.to_q,attn.to_k]"])
    ).requested.model
    assert (model.lora_rank, model.lora_alpha) == (16, 32)


def test_what_the_summary_advises_is_a_start(home: Path) -> None:
    """Of a run that has all its epochs and a training state."""
    (advice,) = [line.split()[2:] for line in (home / "save/run/summary.md").read_text().splitlines() if "run_name=run-longer" in line]
    assert tiny(home, *STATES, *advice).context.progress.epoch == 0
