"""`ff-train`: reads a config and checks it, prints it, or trains, in one or several processes.

It imports nothing heavy before the config is valid.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

from flow_factory import __version__
from flow_factory.commands.ending import ended_by, explain
from flow_factory.commands.subcommands import first, size_of_gpu
from flow_factory.commands.training import run_errors, run_to_end, set_up_process
from flow_factory.config import RunConfig, config_help, dump_config, load_config
from flow_factory.config.engine import MACHINES
from flow_factory.config.places import require_places
from flow_factory.distributed import liveness
from flow_factory.distributed.environment import environment_lines
from flow_factory.distributed.launch import launch, restart_overrides, stay_with_launcher
from flow_factory.distributed.process_monitor import FAILED, LEFT
from flow_factory.distributed.topology import FLAGS, overrides_of, resolve_topology
from flow_factory.reporting.metric_names import metrics_help
from flow_factory.utils.signals import Interrupted, Listener, Stopped
from flow_factory.utils.terminal import log_to_terminal, note, print_output, quiet_libraries

RESERVED = {"examples": "flow_factory.commands.examples", "init": "flow_factory.commands.init"}
"""First arguments that are commands. A file with such a name is written `./init`."""
EXAMPLES = """\
examples:
  ff-train examples quickstart                                     copy an example into the current folder; without a name, list them
  ff-train init                                                    write a YAML of your own: five questions, or flags
  ff-train examples/quickstart.yaml                                train the quick start on a CPU, in minutes
  ff-train examples/grpo/lora/flux1.yaml --check                   validate the config, print the plan, estimate memory
  ff-train examples/grpo/lora/flux1.yaml num_processes=1 --check --gpu 24   list the keys that make it fit a GPU of 24 GB
  ff-train examples/quickstart.yaml --test-run                     run each phase once, and measure time and memory
  ff-train examples/grpo/lora/flux1.yaml train.learning_rate=1e-4  set any key from the command line
  ff-train --help-config train                                     explain the keys of a section, or of an algorithm: nft, awm, ...
  ff-train CONFIG model.resume_path=save/RUN                       resume a run that stopped
"""


def restarts() -> list[str]:
    """A line about the restart in a restarted process; empty otherwise."""
    done, most = (os.environ.get(f"TORCHELASTIC_{name}", "0") for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    return [f"a process died; this is restart {done} of {most}"] if done != "0" else []


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="ff-train",
        description="Post-train a diffusion or flow-matching model for images or videos with reinforcement learning, from one YAML file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("config", nargs="?", type=Path, help="the YAML file")
    p.add_argument("overrides", nargs="*", metavar="section.key=value", help="set keys of the file, for example train.learning_rate=1e-4")
    p.add_argument("--check", action="store_true", help="validate the config, data set, rewards and checkpoint, print the plan, and stop")
    p.add_argument(
        "--test-run",
        action="store_true",
        help="run each phase once on a few rows, keep nothing, and report time, memory and disk of the run",
    )
    p.add_argument(
        "--gpu", type=gigabytes, metavar="GB", help="with --check: assume GPUs of this many GB, and list the keys that make the run fit"
    )
    p.add_argument("--print-config", action="store_true", help="print the resolved config, and stop")
    p.add_argument(
        "--help-config", nargs="?", const="", metavar="SECTION", help="explain the YAML's keys: all, or those of one section or algorithm"
    )
    p.add_argument("--help-metrics", nargs="?", const="", metavar="NAME", help="explain the metrics that a run logs: all, or one")
    p.add_argument("--version", action="version", version=f"flow-factory {__version__}")
    several = p.add_argument_group("several processes (these override the environment, which overrides the YAML)")
    for flag, (kind, text) in FLAGS.items():
        several.add_argument(f"--{flag}", type=kind, help=text)
    return p


def gigabytes(text: str) -> float:
    """Raises:
    argparse.ArgumentTypeError: the text is not a positive number.
    """
    size = size_of_gpu(text)
    if size is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a GPU size in GB; write e.g. 24")
    return size


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 bad config or data, 130 interrupted."""
    stay_with_launcher()
    listener = Listener()
    with listener.watching():
        code = listen(listener, argv)
        liveness.leave(LEFT if code in (0, 130) else FAILED)
        liveness.release_collectives(code == 0)
        return code


def listen(listener: Listener, argv: Sequence[str] | None) -> int:
    """Runs the command. From here on SIGTERM and Ctrl-C end it with one line and code 130."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given and given[0] in RESERVED:
        return int(import_module(RESERVED[given[0]]).main(given[1:]))
    args = parser().parse_intermixed_args(given)
    if args.gpu is not None and not args.check:
        parser().error("--gpu needs --check: a run uses the GPUs of this machine")
    try:
        set_up_process(vars(args))
        log_to_terminal(logging.WARNING if first() else logging.ERROR)
        if args.help_config is not None:
            print_output(config_help(args.help_config or None))
            return 0
        if args.help_metrics is not None:
            print_output(metrics_help(args.help_metrics or None))
            return 0
        if args.config is None:
            parser().print_help()
            return 2
        return act(load_config(args.config, overrides_of(vars(args), os.environ, args.overrides)), args, listener)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        try:
            listener.close()
        except Stopped:  # the launcher signals the remaining processes after a death
            listener.close()
        return explain(ended_by(error, listener))


def act(config: RunConfig, args: argparse.Namespace, listener: Listener) -> int:
    """Runs the command for a valid config."""
    if args.print_config:
        print_output(dump_config(config).removesuffix("\n"))
        return 0
    require_places(config, args.config)
    placement = resolve_topology(config, vars(args), os.environ, starts=not args.check)
    os.environ["FF_RENDEZVOUS_TIMEOUT"] = str(placement.rendezvous_timeout)
    if not config.log.verbose:
        quiet_libraries()
    if (placement.num_processes > 1 or placement.max_restarts) and not placement.inside and not args.check:
        if args.test_run:
            arguments = [str(args.config), *args.overrides, "--test-run"]
            return launch(replace(placement, max_restarts=0), arguments, config.distributed_timeout)
        arguments = [str(args.config), *args.overrides, *restart_overrides(config, placement.max_restarts)]
        from flow_factory.runs.ended import has_ended, why_ended

        if (why := why_ended(config, placement)) is not None:
            folder = Path(config.log.save_dir, config.log.run_name or "")
            note(f"{folder} is complete, and {why}")
            return 0
        return launch(placement, arguments, config.distributed_timeout, partial(has_ended, config, placement))
    if first():
        note(*config.notices, *restarts(), *environment_lines(os.environ))
    if config.log.verbose:
        logging.getLogger("flow_factory").setLevel(logging.INFO)
    if args.check:
        from flow_factory.check import report

        os.environ[MACHINES] = "" if placement.inside else str(placement.num_machines)
        try:
            report_lines, fits = report(config, args.gpu)
        finally:
            del os.environ[MACHINES]
        print_output(report_lines)
        return 0 if fits else 1
    return work(config, listener, args.test_run)


def work(config: RunConfig, listener: Listener, test: bool) -> int:
    """Trains in this process, or makes a test run."""
    from flow_factory.runs.resume import Finished

    fits = True
    try:
        if test:
            with run_errors(config):
                from flow_factory.commands.test_run import rehearse

                summary, fits = rehearse(config, listener.check)
        else:
            summary = run_to_end(config, listener.check)[1]
    except Interrupted:
        return 130
    except Finished as finished:
        if first():
            note(finished)
        return 0
    if summary:
        print("\n" + summary)
    return 0 if fits else 1
