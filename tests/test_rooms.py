"""The layout: each room imports only rooms before it, and the README's tree is drawn from the folders."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flow_factory"
ORDER = (
    "utils", "core", "config", "data", "distributed", "models algorithms rewards", "policy", "checkpoints", "distributed.engines",
    "memory", "reporting", "runs", "training", "commands",
)  # fmt: skip
"""Rooms, lowest first; those of one entry do not import each other. Commands import what they like."""
RANKS = {name: k for k, names in enumerate(ORDER) for name in names.split()}
BELOW = {"", "types", "hparams"}
"""What every room may import: records without logic, and the interface of users' rewards."""
NAMES = {"models", "algorithms", "rewards"}
"""Packages whose `__init__` is a table of names, which configs are checked with."""
TOP = {"__init__", "__main__", "cli", "command", "check", "train", "hparams", "types"}


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str | None:
    """None: a module at the top, which imports what it likes."""
    if module.startswith("distributed.engines"):
        return "distributed.engines"
    first = module.partition(".")[0]
    return first if first in RANKS else None


def imported(source: str, known: set[str]) -> Iterator[str]:
    """Modules of the package that a file imports, also inside of functions; imports for type checkers alone do not count."""

    def statements(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
                yield child
                yield from statements(child)

    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("flow_factory.") in known else node.module for name in full]
        else:
            continue
        for name in names:
            if name == "flow_factory" or name.startswith("flow_factory."):
                yield name.removeprefix("flow_factory").removeprefix(".")


def wrong_imports(files: dict[str, str]) -> list[str]:
    """`module -> module` for each import of a room that is not before the importer's."""
    wrong = []
    for module, source in files.items():
        room = room_of(module)
        if room is None:
            continue
        for name in imported(source, set(files)):
            other = room_of(name)
            if name in BELOW or name in NAMES or other == room:
                continue
            if room != "commands" and (other is None or RANKS[other] >= RANKS[room]):
                wrong.append(f"{module} -> {name}")
    return wrong


def test_a_room_imports_only_rooms_before_it() -> None:
    assert wrong_imports({name: path.read_text() for name, path in modules().items()}) == []


@pytest.mark.parametrize(
    "line",
    [
        "from flow_factory.training.trainer import Trainer",
        "def f():\n    import flow_factory.training.trainer",
        "from flow_factory.models.base import ModelAdapter",
        "from flow_factory.cli import main",
        "from flow_factory.training import trainer",
    ],
)
def test_an_import_that_runs_up_is_seen(line: str) -> None:
    """Of an algorithm: rooms above it, a room beside it, and the command."""
    files = dict.fromkeys(modules(), "") | {"algorithms.mine": line}
    assert len(wrong_imports(files)) == 1
    assert wrong_imports(files | {"algorithms.mine": "from flow_factory.core.dynamics import Kernel"}) == []


def test_tables_of_names_import_nothing_but_the_registry() -> None:
    for name in NAMES:
        text = (PACKAGE / name / "__init__.py").read_text()
        assert set(imported(text, set(modules()))) <= {"utils.registry", "rewards", "rewards.base"}, name


def test_few_files_are_at_the_top_and_every_room_says_what_it_knows() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == TOP and len(TOP) <= 8
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == {name for name in RANKS if "." not in name}


def tree() -> str:
    """The rooms in their order, each with the first sentence of its `__init__`."""
    lines = ["flow_factory/"]
    for name in (n for names in ORDER for n in names.split() if "." not in n):
        text = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text()))
        assert text, name
        lines.append(f"  {name + '/':14}{' '.join(text.partition(chr(10) * 2)[0].split())}")
    for name, what in (
        ("train.py", "builds a run: the only file that imports every folder"),
        ("check.py", "`--check`"),
        ("cli.py", "`ff-train`"),
    ):
        assert (PACKAGE / name).is_file()
        lines.append(f"  {name:14}{what}")
    return "\n".join(lines)


def test_the_readme_has_the_tree_of_the_folders() -> None:
    assert f"```\n{tree()}\n```" in (ROOT / "README.md").read_text()


def test_tests_stand_in_the_rooms_that_they_are_of() -> None:
    rooms = {name for name in RANKS if "." not in name} | {"gpu", "tiny", "golden"}
    assert {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and not path.name.startswith((".", "__"))} <= rooms
