"""Name, dotted path or entry point -> class, imported when it is used."""

import difflib
import importlib
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from flow_factory.utils.errors import UserError
from flow_factory.utils.user_code import STRANGERS, user_errors


class UnknownName(UserError):
    """A name is unknown. The message lists the known names and the nearest one."""


def nearest(name: str, known: list[str]) -> str:
    """ " Did you mean 'x'?" if there is a similar name, else an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _plain(name: str) -> str:
    return name.lower().translate({ord(c): None for c in "-_ "})


class Registry:
    """Maps the names of one kind of thing ("model", "reward", ...) to classes.

    A name is looked up in the table, ignoring case, hyphens and underscores; then among installed entry points of the group
    `flow_factory.<kind>`. A name with a dot or colon is a path `package.module.Class` or `package.module:Class`, which may be a file of
    the current directory.

    Args:
        base: `module:Class` of the required base class, or None.
        otherwise: what an unknown name may be replaced by, for its message.
    """

    def __init__(
        self, kind: str, table: dict[str, str], aliases: dict[str, str] | None = None, base: str | None = None, otherwise: str = ""
    ):
        self.kind, self.table, self.aliases, self.base = kind, table, aliases or {}, base
        self.otherwise = f"; {otherwise}" if otherwise else ""

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def canonical(self, name: str) -> str:
        """The table's spelling of a name or an alias, ignoring case, hyphens and underscores; the name itself if it is unknown."""
        spellings = {_plain(k): k for k in self.table} | {_plain(k): v for k, v in self.aliases.items()}
        return spellings.get(_plain(name), name)

    def path(self, name: str) -> str:
        """`module:Class` of a name, without importing it.

        Raises:
            UnknownName: not in the table, no entry point, not a dotted path.
        """
        if (spelled := self.canonical(name)) in self.table:
            return self.table[spelled]
        for point in entry_points(group=f"flow_factory.{self.kind}"):
            if point.name == name:
                return point.value
        if ":" in name:
            return name
        if name.rpartition(".")[2].isidentifier() and "." in name:
            return ":".join(name.rsplit(".", 1))
        known = list(self.table)
        raise UnknownName(
            f"no {self.kind} {name!r}.{nearest(name, known)} Known: {', '.join(known)}{self.otherwise}; "
            "or give a dotted path package.module.Class"
        )

    def __getitem__(self, name: str) -> Any:
        """The class.

        Raises:
            UnknownName: see `path`, or the dotted path does not lead to a class.
            UserError: the import of its module raises or exits; or the class is not a subclass of `base`, or defines a member that
                `base` has renamed (`RENAMED`).
        """
        module, _, attribute = self.path(name).partition(":")
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
        with user_errors(f"{self.kind} {name!r} cannot be imported", module, UserError):
            imported = self._imported(name, module)
        if not hasattr(imported, attribute):
            raise UnknownName(f"no {self.kind} {name!r}: module {module!r} has no {attribute!r}")
        cls = getattr(imported, attribute)
        if self.canonical(name) not in self.table:
            self._require_base(name, cls)
            STRANGERS[module] = f"{self.kind} {name!r}"
        return cls

    def _imported(self, name: str, module: str) -> ModuleType:
        try:
            with redirect_stdout(sys.stderr):  # stdout has the plan or the config, not a module's prints
                return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # a dependency of the module is missing, not the module
            raise UnknownName(f"no {self.kind} {name!r}: there is no module {module!r} (looked in the current directory too)") from error

    def _require_base(self, name: str, cls: Any) -> None:
        module, _, base = (self.base or "").partition(":")
        if base and not (isinstance(cls, type) and issubclass(cls, getattr(importlib.import_module(module), base))):
            raise UserError(f"{self.kind} {name!r} is not a subclass of {base} ({module})")
        for old, new in getattr(cls, "RENAMED", {}).items():
            if hasattr(cls, old):
                raise UserError(f"{self.kind} {name!r} defines {old}, which is called {new} now; rename it")
