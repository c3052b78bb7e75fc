"""Where modules are, and what their source says: nothing of them is imported."""

import ast
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


class SignatureError(ValueError):
    """Source that should say what is accepted is missing or says it in another way."""


def lineage(path: str, seen: frozenset[ast.AST] = frozenset()) -> Iterator[ast.ClassDef]:
    """The class `module:Class` and its bases, nearest first, as far as their source can be followed.

    Args:
        seen: the statements that led here; a class may have the name of the base that it imports.

    Raises:
        SignatureError: source that is not Python, or an import from above its package.
    """
    module, _, name = path.partition(":")
    spec = spec_of(module)
    if spec is None:
        return
    for node in body_of(module):
        match node:
            case ast.ClassDef(name=found, bases=bases) if found == name and node not in seen:
                yield node
                for base in bases:
                    yield from lineage(f"{module}:{ast.unparse(base)}", seen | {node})
            case ast.ImportFrom(names=aliases) if node not in seen:
                package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
                for alias in aliases:
                    if (alias.asname or alias.name) == name:
                        yield from lineage(f"{_origin(node, package)}:{alias.name}", seen | {node})


def _origin(node: ast.ImportFrom, package: str) -> str:
    try:
        return importlib.util.resolve_name("." * node.level + (node.module or ""), package)
    except ImportError as error:
        raise SignatureError(f"`{ast.unparse(node)}` in {package or 'a module'}: {error}") from error


def spec_of(module: str) -> ModuleSpec | None:
    """Where a module is, however it is installed, in the current directory last; neither it nor its parents are imported."""
    names = module.split(".")
    if not all(map(str.isidentifier, names)):
        return None
    places: Iterable[str] | None = None
    spec = None
    for depth in range(1, len(names) + 1):
        spec = _found(".".join(names[:depth]), places)
        if spec is None and depth == 1:
            spec = PathFinder.find_spec(names[0], [str(Path.cwd())])
        if spec is None:
            return None
        places = spec.submodule_search_locations or ()
    return spec


def _found(module: str, places: Iterable[str] | None) -> ModuleSpec | None:
    """As the import system looks: its finders know of editable installs, archives and namespaces."""
    path = None if places is None else list(places)
    finders = (finder for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next((spec for finder in finders if (spec := finder.find_spec(module, path, None)) is not None), None)


def source_of(module: str) -> str | None:
    """The text of a module, without importing it or its parents; None where there is none, or it is compiled.

    Raises:
        SignatureError: it cannot be read.
    """
    spec = spec_of(module)
    read = getattr(spec and spec.loader, "get_source", None)
    try:
        return None if read is None else read(module)
    except (ImportError, OSError, SyntaxError) as error:
        raise SignatureError(f"module {module!r} cannot be read: {error}") from error


def body_of(module: str) -> list[ast.stmt]:
    """The statements of a module; none where it has no source.

    Raises:
        SignatureError: it is not Python.
    """
    spec = spec_of(module)
    return _tree(source_of(module) or "", (spec and spec.origin) or module).body


@cache
def _tree(text: str, file: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise SignatureError(f"{file}:{getattr(error, 'lineno', None) or 1}: {getattr(error, 'msg', None) or error}") from error
