"""Odd environments: each fault at every command, one line and a code, or a run as if nothing were."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import httpx2
import pytest
from rich.console import Console

from bootpig.flows.cli.display import Display
from bootpig.flows.cli.main import main
from bootpig.flows.proxies import LOOPBACK, check_proxies, spare_loopback
from bootpig.stages.engine.contract import InputError

PROJECT = Path(__file__).parents[2]
NOBODY = 12345
CAPABLE = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
# the tests' own Python may lie below a folder that only root may enter
CAPABLE += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


def bootpig(
    *arguments: str, environment: dict[str, str] | None = None, before: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(before or []), sys.executable, "-m", "bootpig", *arguments],
        cwd=PROJECT,
        env=dict(os.environ) if environment is None else environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )


def commands(store: Path) -> dict[str, list[str]]:
    return {
        "plan": ["plan", "toy", f"--set=root={store}"],
        "status": ["status", "toy", f"--set=root={store}"],
        "runs": ["runs", "--root", str(store)],
        "verify": ["verify", "toy", f"--set=root={store}"],
        "gc": ["gc", "--root", str(store)],
        "run": ["run", "toy", "--until", "caption", f"--set=root={store}", "--set=caption.count=100"],
    }


PROXIES = {
    "quotes": "'http://proxy:3128'",
    "a space": "http://proxy:3128 ",
    "an unknown kind": "socks://proxy:1080",
    "SOCKS 4": "socks4://proxy:1080",
    "no host": "http://",
    "a port that is none": "http://proxy:port",
    "a password": "http://me:secret-of-mine@proxy:port",
}


@pytest.mark.parametrize("name", list(PROXIES))
@pytest.mark.parametrize("variable", ["http_proxy", "HTTPS_PROXY", "all_proxy"])
def test_a_proxy_that_no_client_can_use_is_named(monkeypatch: pytest.MonkeyPatch, name: str, variable: str) -> None:
    monkeypatch.setenv(variable, PROXIES[name])
    with pytest.raises(InputError, match=rf"^{variable}: ") as told:
        check_proxies()
    assert "\n" not in str(told.value) and "secret" not in str(told.value)


@pytest.mark.parametrize("value", ["", "http://proxy:3128", "proxy:3128", "http://[::1]:3128", "https://me:pw@proxy:1"])
def test_usual_proxies_are_fine(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("http_proxy", value)
    check_proxies()


@pytest.mark.parametrize(
    ("small", "capital", "expected"),
    [
        (None, None, ""),
        ("example.org", None, "example.org,"),
        (None, "example.org , 'localhost'", "example.org,localhost,"),
        ("a;b", "c", "a,b,"),
        ("a b\tc", None, "a,b,c,"),
        ("http://a, host:80,10.0.0.0/8", None, "a,host:80,10.0.0.0/8,"),
        ("[::1],::1/128,[::1]:8080", None, "::1,"),
        ("fe80::/10,[fe80::1%eth0]", None, "fe80::,fe80::1,"),
        ("*", None, "*"),
        ("*,localhost", None, "*"),
    ],
)
def test_loopback_joins_no_proxy(
    monkeypatch: pytest.MonkeyPatch, small: str | None, capital: str | None, expected: str
) -> None:
    for name, value in (("no_proxy", small), ("NO_PROXY", capital)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    check_proxies()
    spare_loopback()
    hosts = os.environ["no_proxy"].split(",")
    assert hosts[: expected.count(",")] == expected.split(",")[:-1] and os.environ["NO_PROXY"] == os.environ["no_proxy"]
    assert hosts == ["*"] or set(LOOPBACK) <= set(hosts)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for client in (httpx.Client, httpx2.Client):  # Prefect's, and that of the `openai` package
        client().close()
    for host in LOOPBACK:
        assert urllib.request.proxy_bypass(f"{host}:4200")


@pytest.mark.parametrize("entry", ["bücher.example", "xn--bcher-kva.example", "a:b:c", "[::1"])
def test_an_entry_of_no_proxy_that_clients_fail_at_is_named_or_read(
    monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    monkeypatch.setenv("no_proxy", f"localhost,{entry}")
    if entry == "[::1":
        check_proxies()
        return
    with pytest.raises(InputError, match=rf"^no_proxy: '{re.escape(entry)}' → "):
        check_proxies()


def test_loopback_by_another_name_joins_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    spare_loopback("http://127.0.1.1:8000/v1", "https://example.org/v1", "http://[::", None)
    assert os.environ["no_proxy"].split(",") == [*LOOPBACK, "127.0.1.1"]


@pytest.mark.parametrize("command", ["plan", "status", "runs", "verify", "gc", "run"])
def test_a_bad_proxy_at_every_command(command: str, tmp_path: Path) -> None:
    done = bootpig(*commands(tmp_path)[command], environment={**os.environ, "all_proxy": "socks://proxy:1"})
    assert done.returncode == 2 and done.stderr.startswith("all_proxy: ") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_our_own_server_is_never_asked_for_through_a_proxy(tmp_path: Path) -> None:
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    environment |= {"https_proxy": "http://127.0.0.1:9", "all_proxy": "http://127.0.0.1:9"}
    for name in ("no_proxy", "NO_PROXY", "PREFECT_API_URL"):
        environment.pop(name, None)
    done = bootpig(*commands(tmp_path)["run"], environment=environment)
    assert done.returncode == 0, done.stderr
    assert "1 units: 1 made" in done.stdout


HOMES = {"no such folder": {"HOME": "/nonexistent"}, "the root": {"HOME": "/"}, "none": {}}


@pytest.fixture
def anyone(tmp_path: Path) -> Iterator[Path]:
    """A folder for a user without an entry in /etc/passwd."""
    probe = subprocess.run([*CAPABLE, sys.executable, "-c", ""], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("cannot become another user here")
    folder = Path("/tmp" if os.path.isdir("/tmp") else tmp_path, f"bootpig-anyone-{os.getpid()}")
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=False)


@pytest.mark.parametrize(
    ("command", "name"), [("plan", "none"), *((command, name) for command in ("status", "runs") for name in HOMES)]
)
def test_a_user_without_a_passwd_entry(anyone: Path, command: str, name: str) -> None:
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(anyone), **HOMES[name]}
    done = bootpig(*commands(anyone / "store")[command], environment=environment, before=CAPABLE)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") <= 1 and "HOME: " in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["the root", "none"])
def test_a_run_of_such_a_user(anyone: Path, name: str) -> None:
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(anyone), **HOMES[name]}
    done = bootpig(*commands(anyone / "store")["run"], environment=environment, before=CAPABLE)
    assert done.returncode == 0, done.stderr
    assert oct((anyone / f"bootpig-{NOBODY}").stat().st_mode)[-3:] == "700"


def test_a_folder_of_somebody_else_is_no_home(anyone: Path) -> None:
    (anyone / f"bootpig-{NOBODY}").mkdir()
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(anyone), "HOME": "/nonexistent"}
    done = bootpig("runs", "--root", str(anyone / "store"), environment=environment, before=CAPABLE)
    assert done.returncode == 2 and "is not ours; set HOME" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
def test_output_never_fails_on_a_character(tmp_path: Path, encoding: str) -> None:
    store = tmp_path / "stör 🦊"
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    # a plan, which imports torch, in the encoding that has the fewest characters and in the one unlike all others
    for command in ("status", "runs", "verify", *(["plan"] if encoding in ("ascii", "utf-16") else [])):
        done = bootpig(*commands(store)[command], environment=environment)
        assert done.returncode == 0 and "Error" not in done.stderr, (command, done.stderr)
    refused = bootpig("plan", "toy", "--set=name=stör 🦊", environment=environment)
    assert refused.returncode == 2


HELP = ["run", "init", "status", "plan", "runs", "gc", "setup-server", "verify", "train", "generate", "evaluate"]


@pytest.mark.parametrize("command", [[], *([name] for name in HELP)])
def test_help_needs_no_character(command: list[str], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    in_ascii = io.TextIOWrapper(os.fdopen(os.dup(1), "wb"), encoding="ascii")
    with contextlib.redirect_stdout(in_ascii), pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    in_ascii.close()
    said = capfdbinary.readouterr().out
    assert ended.value.code == 0 and said.startswith(b"usage: bootpig") and said.isascii()
    assert b"?" not in said


def test_arrows_become_ascii(tmp_path: Path) -> None:
    done = bootpig(
        "runs", "promote", "x", "--root", str(tmp_path), environment={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 2 and done.stderr.startswith("run: 'x' -> there is no such run")


CLOSED = [">&-", "2>&-", "<&- >&- 2>&-"]


@pytest.mark.parametrize(
    ("command", "closed"),
    [("plan", CLOSED[-1]), *((command, closed) for command in ("status", "runs", "verify", "gc") for closed in CLOSED)],
)
def test_a_closed_stream_ends_nothing(tmp_path: Path, command: str, closed: str) -> None:
    words = shlex.join([sys.executable, "-m", "bootpig", *commands(tmp_path)[command]])
    done = subprocess.run(["sh", "-c", f"{words} {closed}"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_under_the_output_ends_no_run() -> None:
    with open("/dev/full", "w") as full:
        screen = Display(Console(file=full))
        screen.line("a line")
        screen.line("another")
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what is buffered goes there
    assert screen.console is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], check=False).returncode != 0:
        pytest.skip("mounting a tmpfs needs the rights to")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


WORK = {
    "run": ["run", "toy", "--until", "caption"],
    "train": ["train", "toy"],
    "generate": ["generate", "configs", "--prompt", "A photo of a mug, here"],
    "evaluate": ["evaluate", "configs", "--config", "toy"],
}
"""What needs the temporary folder."""


@pytest.mark.parametrize("left", [0, 64])
@pytest.mark.parametrize("command", list(WORK))
def test_a_full_temporary_folder_is_named_before_work(
    small_disk: Path, tmp_path: Path, command: str, left: int
) -> None:
    """One with no room at all is passed over by Python, but not by SQLite in Prefect's server."""
    with contextlib.suppress(OSError), open(small_disk / "full", "wb", buffering=0) as full:
        while left == 0 or full.tell() < (100 - left) * 1024:
            full.write(bytes(1024))
    place = [f"--set=root={tmp_path / 'store'}"] if command in ("run", "train") else ["-o", str(tmp_path / "out.png")]
    done = bootpig(*WORK[command], *place, environment={**os.environ, "TMPDIR": str(small_disk)})
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"TMPDIR: {str(small_disk)!r} → No space left on device; free some space")
    assert done.stderr.count("\n") == 1


READ_ONLY = """
mount -t tmpfs none /mnt && mkdir /mnt/here && mount --bind "$PWD" /mnt/here && cd /mnt/here || exit 77
mount -o remount,bind,ro /mnt/here && mount -t tmpfs -o ro none /var/tmp && mount -t tmpfs -o ro none /tmp || exit 77
exec "$@"
"""


@pytest.mark.parametrize("command", [*WORK, "status"])
def test_a_machine_without_a_temporary_folder(command: str) -> None:
    """As a container with a read-only root file system, in which only the store can be written."""
    words = WORK.get(command, ["status", "toy"])
    place = ["-o", "/mnt/out.png"] if command in ("generate", "evaluate") else ["--set=root=/mnt/store"]
    environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    environment |= {"HOME": "/mnt/nobody"} if command == "status" else {"PREFECT_HOME": "/mnt/prefect"}
    done = bootpig(*words, *place, environment=environment, before=["unshare", "-m", "sh", "-c", READ_ONLY, "sh"])
    if done.returncode in (77, 1) and ("mount" in done.stderr or "unshare" in done.stderr):
        pytest.skip("mounting needs the rights to")
    if os.path.exists("/usr/tmp"):
        pytest.skip("there is a further temporary folder")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("TMPDIR: '/tmp' → no temporary folder can be written; ")
