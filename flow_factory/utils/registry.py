"""Name, dotted path or entry point -> class, imported at the moment of use."""

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
    """A name that no table knows; the message lists the known ones and the nearest."""


def nearest(name: str, known: list[str]) -> str:
    """ " Did you mean 'x'?" where something is near, else nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _plain(name: str) -> str:
    return name.lower().translate({ord(c): None for c in "-_ "})


class Registry:
    """Maps the names of one kind of thing ("model", "reward", ...) to classes.

    A name is looked up in the table, ignoring case, hyphens and underscores; then among installed entry points of the group
    `flow_factory.<kind>`; a name with a dot or colon is a path `package.module.Class` or `package.module:Class`, also of a file in the
    current directory.

    Args:
        base: `module:Class` that a class must be a subclass of, where there is one.
    """

    def __init__(self, kind: str, table: dict[str, str], aliases: dict[str, str] | None = None, base: str | None = None):
        self.kind, self.table, self.aliases, self.base = kind, table, aliases or {}, base

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def canonical(self, name: str) -> str:
        """The table's spelling of a name, of one of its aliases, or of either with other case, hyphens or underscores; else the name."""
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
        if "." in name:
            return ":".join(name.rsplit(".", 1))
        known = list(self.table)
        raise UnknownName(
            f"no {self.kind} {name!r}.{nearest(name, known)} Known: {', '.join(known)}; or give a dotted path package.module.Class"
        )

    def __getitem__(self, name: str) -> Any:
        """The class.

        Raises:
            UnknownName: see `path`, or the dotted path does not lead to a class.
            UserError: its module raises, or ends the program, as it is imported; or the class is none of `base`.
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
            with redirect_stdout(sys.stderr):  # the output is a plan, a config: what a module prints is none of it
                return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there, something that it needs is not
            raise UnknownName(f"no {self.kind} {name!r}: there is no module {module!r} (looked in the current directory too)") from error

    def _require_base(self, name: str, cls: Any) -> None:
        module, _, base = (self.base or "").partition(":")
        if base and not (isinstance(cls, type) and issubclass(cls, getattr(importlib.import_module(module), base))):
            raise UserError(f"{self.kind} {name!r} is no subclass of {base} ({module})")
