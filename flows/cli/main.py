"""The `bootpig` command: its arguments and exit codes.

0 done · 1 some units failed, or an error at run time · 2 bad input · 130 interrupted · 143 terminated.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import types
from collections.abc import Sequence
from typing import Any, NoReturn

from rich.console import Console

from bootpig import __version__
from bootpig.flows import interrupt
from bootpig.flows.cli import commands, draw, export, push, select, study, sweep
from bootpig.flows.cli.completion import SHELLS, PrintCompletion
from bootpig.flows.cli.output import settle_output
from bootpig.flows.environment import settle_home
from bootpig.flows.proxies import check_proxies, spare_loopback
from bootpig.flows.runs.gc import KEEP
from bootpig.stages.export.run import SHARD_BYTES
from bootpig.stages.plain_text import one_line

EPILOG = (
    "exit codes: 0 done, 1 some units failed (named), 2 bad input, 130 interrupted, 143 terminated. "
    "Complete units are always kept."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    settle_output()
    asked = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        check_proxies()
        spare_loopback()
        if said := settle_home():
            print(said, file=sys.stderr)
        code: int = asked.command(asked)
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader closed the pipe; without this, Python reports it again when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return commands.explain(error)
    return code


def entry() -> NoReturn:
    """The console script: runs `main` and exits in time, even if threads are still working."""
    interrupt.exits_process = True
    # progress bars of libraries would interfere with ours
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        code = main()
    except BaseException as error:
        if isinstance(error, Exception) or (isinstance(error, SystemExit) and error.code not in (130, 143)):
            raise
        interrupt.stop(error)
        code = interrupt.exit_code(error)
        Console(stderr=True).print("interrupted; complete units are kept, run again to continue", highlight=False)
        sys.stdout.flush()
        sys.stderr.flush()
        # threads of unfinished units may take minutes, and their results would be discarded anyway
        os._exit(code)
    sys.exit(code)


class _Parser(argparse.ArgumentParser):
    """One line for a wrong option, in place of the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {one_line(message, 300)}; see {self.prog} --help\n")


def _terminate(number: int, frame: types.FrameType | None) -> NoReturn:
    raise SystemExit(143)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = _Parser(prog="bootpig", description="Subject-driven image generation from bootstrapped data.", epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"bootpig {__version__}")
    top.add_argument(
        "--print-completion", action=PrintCompletion, choices=SHELLS, help="print a script that completes with TAB"
    )
    add = top.add_subparsers(required=True, metavar="COMMAND").add_parser
    _run(add("run", help="run the pipeline or a part of it; complete units are reused", epilog=EPILOG))

    init = add("init", help="write a copy of a shipped configuration for editing")
    init.add_argument("name", metavar="NAME", help="toy, sd21, …; without a name, list them", nargs="?")
    init.add_argument("-o", "--out", metavar="FILE", help="the new file (NAME.yaml)")
    init.set_defaults(command=commands.init)

    status = add("status", help="show which units are complete, stale, failed or pending")
    _config(status)
    _json(status)
    status.set_defaults(command=commands.status)

    plan = add("plan", help="show what a run would do and what it would cost; changes nothing")
    _config(plan)
    _json(plan)
    plan.set_defaults(command=commands.plan)

    preview = add("select", help="show what each rule of the selection keeps and drops; changes nothing")
    _config(preview)
    _json(preview)
    preview.add_argument(
        "-o",
        "--out",
        default="select.html",
        metavar="FILE",
        help="page with pictures near each limit (select.html)",
    )
    preview.set_defaults(command=select.select)

    matrix = add("sweep", help="run a matrix of settings and seeds over one store, as a table", epilog=EPILOG)
    matrix.add_argument("file", metavar="FILE", help="a YAML file with base, cells or grid, and seeds")
    matrix.add_argument("--dry-run", action="store_true", help="show what each run would take; change nothing")
    matrix.add_argument("--retry-failed", action="store_true", help="retry failed rows, then rebuild what became stale")
    _json(matrix)
    matrix.set_defaults(command=sweep.sweep)

    runs = add("runs", help="list the runs of a store, compare two, or promote one")
    _root(runs)
    _json(runs)
    runs.set_defaults(command=commands.runs, action=None)
    actions = runs.add_subparsers(metavar="ACTION", dest="action")
    diff = actions.add_parser("diff", help="settings, row counts and metrics that differ, and the scores of both")
    diff.add_argument("a", metavar="A", help="a run id or latest")
    diff.add_argument("b", metavar="B", help="a run id or latest")
    _json(diff, default=argparse.SUPPRESS)
    promote = actions.add_parser("promote", help="make a run the latest one")
    promote.add_argument("id", metavar="ID")
    for action in (diff, promote):
        _root(action, default=argparse.SUPPRESS)

    gc = add("gc", help="remove data that only old versions of the data set use")
    _root(gc)
    gc.add_argument("--keep", type=int, default=KEEP, metavar="N", help=f"number of promoted versions to keep ({KEEP})")
    gc.add_argument("--dry-run", action="store_true", help="list what would be removed, but remove nothing")
    gc.set_defaults(command=commands.gc)

    server = add("setup-server", help="create the work pool and the automations on the Prefect server")
    server.add_argument(
        "--notify", metavar="TYPE/NAME", help="a notification block for failed runs, such as slack-webhook/oncall"
    )
    server.set_defaults(command=commands.setup_server)

    verify = add("verify", help="verify all checksums; the next run rebuilds damaged units")
    _config(verify)
    verify.set_defaults(command=commands.verify)

    train = add("train", help="run only the train stage, in each process started by torchrun or accelerate launch")
    _config(train)
    train.set_defaults(command=commands.train)

    _generate(add("generate", help="generate pictures of the subject in the reference pictures"))

    evaluate = add("evaluate", help="evaluate a trained model: metrics and a contact sheet")
    evaluate.add_argument("model", metavar="MODEL", help="a trained model's folder, a run id, or latest")
    evaluate.add_argument(
        "--config", required=True, metavar="CONFIG", help="the configuration whose `evaluate` section to use"
    )
    evaluate.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a setting")
    evaluate.add_argument("-o", "--out", required=True, metavar="FOLDER", help="a new folder")
    evaluate.set_defaults(command=draw.evaluate)

    _export(add("export", help="write the data set of a run as Parquet, webdataset or folders, with its card"))

    upload = add("push", help="upload a trained model to the hub, with its card and sample pictures")
    upload.add_argument("model", metavar="RUN", help="a run id, latest, or a trained model's folder")
    upload.add_argument("--to", required=True, metavar="URL", help="hf://owner/name, a new repository or this model's")
    upload.add_argument("--private", action="store_true", help="only you may see it")
    _root(upload)
    upload.set_defaults(command=push.push)

    people = add("study", help="let people compare pictures of two methods or runs, and show what they say")
    study.options(people)
    _root(people)
    _json(people)
    return top


def _run(run: argparse.ArgumentParser) -> None:
    run.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file or a shipped name; not with --run")
    run.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a setting")
    run.add_argument("--run", metavar="ID", help="use the config and units of an earlier run, or of `latest`")
    _root(run)
    run.add_argument("--from", dest="first", metavar="STAGE", help="first stage to run")
    run.add_argument("--until", metavar="STAGE", help="last stage to run")
    run.add_argument("--only", metavar="STAGE", help="run only this stage")
    run.add_argument("--downstream", action="store_true", help="with --only: also run the stages below it")
    run.add_argument("--units", metavar="N,N-N", help="with --only: run only these units")
    run.add_argument("--force", action="store_true", help="rebuild complete units")
    run.add_argument("--retry-failed", action="store_true", help="retry failed rows, then rebuild what became stale")
    run.set_defaults(command=commands.run)


def _generate(generate: argparse.ArgumentParser) -> None:
    generate.add_argument("model", metavar="MODEL", help="a trained model's folder, a run id, or latest")
    generate.add_argument(
        "--ref",
        action="append",
        default=[],
        metavar="PICTURE",
        help="a picture of the subject; can be given several times",
    )
    generate.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="A photo of a <object>, <position> <scene>; can be given several times",
    )
    generate.add_argument("--prompts", metavar="FILE", help="a file with more prompts, one per line")
    generate.add_argument("--negative-prompt", help="what not to draw")
    generate.add_argument(
        "-o", "--out", default="out.png", metavar="PNG", help="output file; several pictures become out-0.png, …"
    )
    generate.add_argument("--sheet", metavar="PNG", help="a contact sheet of all pictures and their inputs")
    generate.add_argument("--image", metavar="PICTURE", help="paint the subject into this picture, with --mask")
    generate.add_argument("--mask", metavar="PICTURE", help="with --image: white is repainted, the rest is kept")
    generate.add_argument(
        "--strength", type=_number, default=1.0, help="inpainting: below 1 keeps some of the picture (1)"
    )
    generate.add_argument(
        "--padding-mask-crop", type=int, metavar="PIXELS", help="inpainting: crop to the mask plus this margin"
    )
    generate.add_argument("--cut-out", action="store_true", help="cut the subject out of plain photos first")
    generate.add_argument(
        "--object", metavar="PHRASE", help="with --cut-out: name of the subject (default: from the first prompt)"
    )
    generate.add_argument(
        "--config", metavar="CONFIG", help="segment models and sampling settings (those of the model's run)"
    )
    generate.add_argument("--count", type=int, default=1, help="pictures per prompt (1)")
    generate.add_argument("--batch-size", type=int, default=4, help="batch size (4)")
    generate.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="dtype in which the networks compute (float16 on a GPU, else float32)",
    )
    generate.add_argument("--steps", type=int, help="denoising steps (default: as the run evaluates, else 50)")
    generate.add_argument(
        "--guidance-scale", type=_number, help="text guidance scale (default: as the run evaluates, else 7.5)"
    )
    generate.add_argument(
        "--reference-guidance-scale",
        type=_number,
        help="reference guidance scale (default: as the run evaluates, else 5)",
    )
    generate.add_argument(
        "--reference-refresh-steps",
        type=int,
        default=1,
        metavar="N",
        help="run the reference network every N steps and reuse its features in between (1)",
    )
    generate.add_argument("--seed", type=int, default=0)
    _root(generate)
    generate.set_defaults(command=draw.generate)


def _export(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN", help="a run id, latest, or a configuration (its data set as it is now)")
    command.add_argument(
        "--to",
        required=True,
        metavar="URL",
        help="an empty folder: a path or any fsspec URL; or hf://datasets/owner/name",
    )
    command.add_argument("--private", action="store_true", help="of a new repository: only you may see it")
    command.add_argument(
        "--format", default="parquet", metavar="FORMAT", help="parquet, webdataset or folder (parquet)"
    )
    command.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=FRACTION",
        help="put this fraction of the samples into another split than train; can be given several times",
    )
    command.add_argument(
        "--shard-bytes", type=int, default=SHARD_BYTES, metavar="N", help="maximum size of a shard (500000000)"
    )
    command.add_argument("--config", metavar="CONFIG", help="find the run in this configuration's store, not in --root")
    command.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="override a setting of the configuration"
    )
    _root(command)
    command.set_defaults(command=export.export_run)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number; give a finite one")
    return value


def _config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a shipped one, such as toy")
    command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a setting")


def _json(command: argparse.ArgumentParser, default: Any = False) -> None:
    command.add_argument("--json", action="store_true", default=default, help="print JSON")


def _root(command: argparse.ArgumentParser, default: str = "./data") -> None:
    command.add_argument("--root", default=default, metavar="URL", help="the store where runs are found (./data)")


if __name__ == "__main__":
    entry()
