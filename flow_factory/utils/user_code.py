"""Errors in a user's own class: they name the class, and the file and line in its code."""

import sys
import sysconfig
import threading
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flow_factory.utils.errors import RewardError, UserError
from flow_factory.utils.signals import Interrupted

LONGEST = 400
"""Characters of another's message: a server's answer may be a page."""
OURS = str(Path(__file__).parent)
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}) + ("<",)
"""Where frames are not the author's; "<frozen importlib>" and the like too."""


@contextmanager
def user_errors(doing: str, module: str, kind: type[UserError] = RewardError) -> Iterator[None]:
    """Runs the code of a class of the user's own. What it raises, an exit among it, becomes a line that begins with `doing`.

    Args:
        doing: such as "reward 'it' failed on 2 samples of row 0".
        module: of the class.

    Raises:
        UserError: of the given kind: the code raised. Or the code raised one itself: its message is whole.
    """
    try:
        yield
    except (KeyboardInterrupt, Interrupted, UserError):
        raise
    except BaseException as error:  # SystemExit, GeneratorExit and the panics of Rust libraries end no run as if it were whole
        raise kind(f"{doing}: {describe_error(error)}{place(traceback.extract_tb(error.__traceback__), module)}") from error


def describe_error(error: BaseException) -> str:
    """The type and the message in one line."""
    try:
        text = short(error)
    except Exception:  # a class of errors of the author's own, whose __str__ may be wrong too
        text = "its message cannot be shown"
    if isinstance(error, SystemExit):
        return f"it ended the program, by SystemExit({error.code!r})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def short(text: object) -> str:
    """In one line of at most LONGEST characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def place(frames: traceback.StackSummary, module: str) -> str:
    """ " (file:line, in function)" of the last frame of the author's, else of the last one of all; "" without any."""
    last = next((f for f in reversed(frames) if _authors(f.filename, module)), frames[-1] if frames else None)
    return "" if last is None or last.filename == __file__ else f" ({last.filename}:{last.lineno}, in {last.name})"


def _authors(file: str, module: str) -> bool:
    """Whether a file is the module's own, or anything but this program and libraries."""
    return _own(file, module) or not file.startswith((OURS + "/", *LIBRARIES))


def _own(file: str, module: str) -> bool:
    """Whether a file is the module's, or of its package."""
    package = sys.modules.get(module.partition(".")[0])
    root = str(Path(getattr(package, "__file__", None) or "/nowhere/at").parent)
    return file == _file(module) or ("." in module and not module.startswith("flow_factory.") and file.startswith(root + "/"))


def _file(module: str) -> str:
    return getattr(sys.modules.get(module), "__file__", None) or ""


def _module(frames: traceback.StackSummary, modules: Collection[str]) -> str | None:
    """The one of these modules that a frame is of, the last frame first: by its own file, else by its package."""
    files = [frame.filename for frame in reversed(frames)]
    owned = (module for file in files for module in modules if file == _file(module))
    return next(owned, next((module for file in files for module in modules if _own(file, module)), None))


STRANGERS: dict[str, str] = {}
"""Classes of the user's own that the program has imported, such as "model 'my_models.Mine'", by their module."""


def owner_of(error: BaseException) -> str | None:
    """The line of an error that nobody expected, where it came through a class of the user's own: the program calls it everywhere."""
    frames = traceback.extract_tb(error.__traceback__)
    module = _module(frames, STRANGERS)
    return None if module is None else f"{STRANGERS[module]}: {describe_error(error)}{place(frames, module)}"


WATCHED: dict[str, str] = {}
"""Whose threads are told of in a line, by module."""


def watch_threads(names: Mapping[str, str]) -> None:
    """A thread of a class of the user's own, or of a library, that dies is said in one line; other threads are told of as before.

    Args:
        names: such as "reward 'it'", by the module of the class.
    """
    WATCHED.update(names)
    before = getattr(threading.excepthook, "before", threading.excepthook)

    def hook(args: threading.ExceptHookArgs) -> None:
        frames = traceback.extract_tb(args.exc_traceback)
        if args.exc_value is None or (module := _module(frames, WATCHED)) is None:
            before(args)
            return
        line = f"{describe_error(args.exc_value)}{place(frames, module)}"
        print(f"warning: {WATCHED[module]}: a thread that it started died: {line}", file=sys.stderr)

    hook.before = before  # type: ignore[attr-defined]
    threading.excepthook = hook
