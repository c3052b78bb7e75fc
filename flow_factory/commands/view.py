"""`ff-view`: look at a folder of runs in a browser, while they train or later."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from flow_factory.checkpoints.known_runs import runs_hint
from flow_factory.commands.serving import listening, serve_until_signal
from flow_factory.commands.subcommands import entry_points
from flow_factory.utils.errors import UserError

HOST, PORT = "127.0.0.1", 8095
PACKAGES = ("fastapi", "uvicorn")
EXAMPLES = f"""\
examples:
  ff-view save                 the runs in save/, at http://{HOST}:{PORT}
  ff-view save --port 0        at a free port, which is printed
  ff-view save/RUN             one run

The list has a filter. Choose two or more runs to lay their curves over each other and to see the differences of their configs. The page of
a run that trains follows it. ff-view listens on this machine alone and writes nothing. For a run on another machine, forward the port:
  ssh -L {PORT}:{HOST}:{PORT} MACHINE ff-view save
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="ff-view", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, metavar="SAVE_DIR", help="a folder of runs (log.save_dir), or one run")
    p.add_argument("--port", type=int, default=PORT, help="port; 0 = one that is free (default: %(default)s)")
    p.set_defaults(act=act)
    return p


def act(args: argparse.Namespace) -> int:
    """Serves until a signal comes; 0 then.

    Raises:
        UserError: there is no such folder, a package is missing, or the port is in use.
    """
    if not args.folder.is_dir():
        wrong = "a file" if args.folder.exists() else "there is no such folder"
        raise UserError(f"{args.folder}: {wrong}; name the log.save_dir of runs.{runs_hint(args.folder)}".removesuffix("."))
    if lacking := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(f"ff-view needs {' and '.join(lacking)}: pip install 'flow-factory[view]'")
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port: {args.port} is not a port; write 0 to 65535")
    socket = listening(HOST, args.port, "--port")
    import uvicorn

    from flow_factory.reporting.page.runs import folders
    from flow_factory.reporting.page.server import make_app

    server = uvicorn.Server(uvicorn.Config(make_app(args.folder), log_config=None, access_log=False, timeout_graceful_shutdown=2))
    many = len(folders(args.folder))
    serve_until_signal(server, socket, f"{many} run{'s' * (many != 1)}", "Ctrl-C ends")
    return 0


main, run = entry_points(parser)

if __name__ == "__main__":
    run()
