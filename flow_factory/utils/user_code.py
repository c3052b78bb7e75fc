"""Errors in a user's own class. Their messages name the class, and the file and line in its code; its frames are a debugger's."""

import sys
import sysconfig
import threading
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from flow_factory.utils.errors import RewardError, UserError
from flow_factory.utils.signals import Interrupted

LONGEST = 400
"""The largest number of characters of a foreign message: the answer of a server may be a whole page."""
OURS = str(Path(__file__).parents[1])
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}) + ("<",)
"""Prefixes of files that are not the user's own, with "<frozen importlib>" and the like."""


@contextmanager
def user_errors(doing: str, module: str, kind: type[UserError] = RewardError) -> Iterator[None]:
    """Runs the code of a user's own class. Any exception, with exits, becomes a line that begins with `doing`.

    Args:
        doing: such as "reward 'it' failed on 2 samples of row 0".
        module: the module of the class.

    Raises:
        UserError: of the given kind, if the code raised anything. A UserError of the code itself is passed on.
    """
    try:
        yield
    except (KeyboardInterrupt, Interrupted, UserError):
        raise
    except BaseException as error:  # SystemExit, GeneratorExit or a panic of a Rust library would end the run as if it had succeeded
        raise kind(f"{doing}: {describe_error(error)}{place(traceback.extract_tb(error.__traceback__), module)}") from error


def describe_error(error: BaseException) -> str:
    """The type and the message of an error in one line."""
    try:
        text = short(error)
    except Exception:  # the user's own exception class may have a wrong __str__
        text = "its message cannot be shown"
    if isinstance(error, SystemExit):
        return f"it ended the program, by SystemExit({error.code!r})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def short(text: object) -> str:
    """The text as one line of at most LONGEST characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def place(frames: traceback.StackSummary, module: str) -> str:
    """ " (file:line, in function)" of the last frame in the user's code, else of the last frame; "" without frames."""
    last = next((f for f in reversed(frames) if _authors(f.filename, module)), frames[-1] if frames else None)
    return "" if last is None or last.filename == __file__ else f" ({last.filename}:{last.lineno}, in {last.name})"


def _authors(file: str, module: str) -> bool:
    """Whether a file belongs to the user: the module itself, or anything except this program and libraries."""
    return _own(file, module) or not file.startswith((OURS + "/", *LIBRARIES))


def _own(file: str, module: str) -> bool:
    """Whether a file is the module's, or in its package."""
    package = sys.modules.get(module.partition(".")[0])
    root = str(Path(getattr(package, "__file__", None) or "/nowhere/at").parent)
    return file == _file(module) or ("." in module and not module.startswith("flow_factory.") and file.startswith(root + "/"))


def _file(module: str) -> str:
    return getattr(sys.modules.get(module), "__file__", None) or ""


def _module(frames: traceback.StackSummary, modules: Collection[str]) -> str | None:
    """The first of these modules that a frame is in, from the last frame on: by its own file, else by its package."""
    files = [frame.filename for frame in reversed(frames)]
    owned = (module for file in files for module in modules if file == _file(module))
    return next(owned, next((module for file in files for module in modules if _own(file, module)), None))


def free_locals(error: BaseException) -> None:
    """Frees the local variables of the functions of this program and of libraries that an error has ended.

    IPython keeps the last error with all frames, which would hold the memory of a failed run. The frames of a user's own code stay whole
    for a debugger.
    """
    link: BaseException | None = error
    while link is not None:
        for frame, _ in traceback.walk_tb(link.__traceback__):
            if frame.f_code.co_filename.startswith((OURS + "/", *LIBRARIES)):
                with suppress(RuntimeError):  # it still runs
                    frame.clear()
        link = link.__cause__ or link.__context__


STRANGERS: dict[str, str] = {}
"""Module -> the user's class that was imported from it, such as "model 'my_models.Mine'"."""


def owner_of(error: BaseException) -> str | None:
    """The message of an unexpected error that came through a user's own class, wherever the program called it; else None."""
    frames = traceback.extract_tb(error.__traceback__)
    module = _module(frames, STRANGERS)
    return None if module is None else f"{STRANGERS[module]}: {describe_error(error)}{place(frames, module)}"


WATCHED: dict[str, str] = {}
"""Module -> the label of the class whose threads are watched."""


def watch_threads(names: Mapping[str, str]) -> None:
    """Reports the death of a thread of a user's class, or of a library, in one line. Other threads are reported as before.

    Args:
        names: module of the class -> its label, such as "reward 'it'".
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
