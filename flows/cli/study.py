"""`bootpig study`: serves pairs of pictures to judges, and prints what their votes say."""

from __future__ import annotations

import argparse
import errno
import json
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from bootpig.flows.cli import display
from bootpig.flows.environment import check_scratch
from bootpig.flows.runs.evaluations import find_evaluation
from bootpig.stages.engine.contract import InputError
from bootpig.stages.study.evaluations import contestants
from bootpig.stages.study.pairs import choose_pairs
from bootpig.stages.study.results import results_table, study_results
from bootpig.stages.study.study import Study, make_study, not_written, read_study, study_id
from bootpig.stages.study.votes import Votes


def study(asked: argparse.Namespace) -> int:
    """Make a study or continue one, and serve it until it is interrupted; or print its results.

    Raises:
        InputError: an evaluation, the folder, the votes or the address cannot be used.
    """
    folder = Path(asked.out)
    _check(asked)
    if asked.results:
        return _results(asked, folder)
    host, port = asked.host, asked.port
    with _listening(host, port) as listener:
        found = read_study(folder)
        if asked.runs:
            found = _made(asked, folder, found)
        elif found is None:
            raise InputError(
                f"RUN: missing → {asked.out!r} holds no study yet; give a run id or an evaluation's folder"
            )
        return _serve(folder, found, listener, host)


def _check(asked: argparse.Namespace) -> None:
    if asked.pairs is not None and asked.pairs < 1:
        raise InputError(f"--pairs: {asked.pairs} → must be at least 1; leave it out for all")
    if not 0 <= asked.seed < 2**62:
        raise InputError(f"--seed: {asked.seed} → must be from 0 to {2**62 - 1}")
    if not 0 <= asked.port <= 65535:
        raise InputError(f"--port: {asked.port} → must be from 1 to 65535; leave it out for a free one")
    if asked.json and not asked.results:
        raise InputError("--json: → needs --results")
    if not asked.runs:
        for option, default in (("pairs", None), ("seed", 0), ("method", [])):
            if getattr(asked, option) != default:
                raise InputError(f"--{option}: → is for a new study; give the RUNs to compare too")


def _made(asked: argparse.Namespace, folder: Path, found: Study | None) -> Study:
    """The study that was asked for, new or as it is in `folder`."""
    check_scratch()
    with (
        tempfile.TemporaryDirectory(prefix="bootpig-") as scratch,
        display.shown_on(Console(stderr=True)) as screen,
        screen.stage("study", 1) as bar,
    ):
        evaluations = [find_evaluation(run, asked.root, Path(scratch, str(n))) for n, run in enumerate(asked.runs)]
        chosen = contestants(evaluations, asked.method)
        pairs = choose_pairs(chosen, asked.pairs, asked.seed)
        if found is None:
            return make_study(folder, chosen, pairs, bar.result())
        if found.id != study_id(chosen, pairs):
            raise InputError(
                f"--out: {asked.out!r} → holds another study, of {', '.join(found.names)} with {len(found.pairs)} "
                "pairs; give a new folder, or leave out RUN to continue that study"
            )
        return found


def _results(asked: argparse.Namespace, folder: Path) -> int:
    found = read_study(folder)
    if found is None:
        raise InputError(f"--out: {asked.out!r} → holds no study; give the folder of one")
    if asked.runs:
        found = _made(asked, folder, found)
    votes = Votes(folder, found)
    votes.save_table()
    results = study_results(found, votes)
    if asked.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(results_table(results), highlight=False)
    return 0


def _serve(folder: Path, found: Study, listener: socket.socket, host: str) -> int:
    import uvicorn

    from bootpig.stages.study.server import StudyServer, is_loopback

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"--out: {str(folder)!r} → this study is being served already; stop that server first"
        ) from None
    except OSError as error:
        raise not_written(folder, error) from None
    try:
        votes = Votes(folder, found)
        votes.save_table()
        server = uvicorn.Server(
            uvicorn.Config(
                StudyServer(found, votes, folder, host).app,
                log_level="warning",
                access_log=False,
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                limit_concurrency=512,
                timeout_graceful_shutdown=2,
            )
        )
        if not is_loopback(host):
            print(
                "votes travel unencrypted; on a network that you do not trust, put a proxy with TLS in front",
                file=sys.stderr,
            )
        print(
            f"{len(found.pairs)} pairs; {len(votes.judges)} judges so far; Ctrl-C ends it, votes are kept",
            file=sys.stderr,
        )
        listener.listen(512)  # whoever reads the link can open it, even before the server is ready
        print(f"{_address(host, listener)}/join/{found.key}", flush=True)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            return 130
        except SystemExit as stopped:
            return stopped.code if isinstance(stopped.code, int) else 143
        finally:
            print(f"votes: {votes.save_table()}", file=sys.stderr)
        return 0
    finally:
        lock.release()


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that is bound before any work, so that a wrong address is found at once.

    Raises:
        InputError: the address cannot be used.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise InputError(
            f"--host: {host!r} → is no address of this machine; use 127.0.0.1, or 0.0.0.0 for all"
        ) from None
    with socket.socket(family, kind) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise InputError(
                    f"--host: {host!r} → is no address of this machine; use 127.0.0.1, or 0.0.0.0 for all"
                ) from None
            problem = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise InputError(f"--port: {port} → {problem}; give another, or leave it out for a free one") from None
        yield listener


def _address(host: str, listener: socket.socket) -> str:
    """The address that judges open."""
    port = listener.getsockname()[1]
    if host in ("0.0.0.0", "::"):
        host = _outward_address()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _outward_address() -> str:
    """The address by which this machine's network knows it. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def options(command: argparse.ArgumentParser) -> None:
    """Add the options of `bootpig study`."""
    command.add_argument(
        "runs", nargs="*", metavar="RUN", help="a run id, latest, or a folder written by bootpig evaluate"
    )
    command.add_argument("-o", "--out", default="study", metavar="FOLDER", help="folder of the study (study)")
    command.add_argument(
        "--method",
        action="append",
        default=[],
        help="what to compare: two or more of one RUN (bootpig and text_only), or one for all or each of several RUNs "
        "(bootpig); the first is compared with each of the others",
    )
    command.add_argument("--pairs", type=int, metavar="N", help="draw N pairs at random (default: all)")
    command.add_argument("--seed", type=int, default=0, help="seed of that draw (0)")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (127.0.0.1)")
    command.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    command.add_argument("--results", action="store_true", help="print what the votes say, and serve nothing")
    command.set_defaults(command=study)
