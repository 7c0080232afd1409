"""A complete run with an endpoint that needs a key: the spending cap, and that the key is never stored."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootpig.flows.execution import _export_keys as export_keys
from bootpig.flows.loading import load_config
from tests.servers.llm import KEY, Endpoint, serving

PROJECT = Path(__file__).parents[2]
VARIABLE = "BOOTPIG_TEST_LLM_KEY"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(Endpoint()) as address:
        yield address


def captions(store: Path, url: str, **settings: object) -> Path:
    """The toy run with captions from the endpoint: three units of ten."""
    import yaml

    data = yaml.safe_load((PROJECT / "configs" / "toy.yaml").read_text())
    llm = {"base_url": url, "model": "writer-1", "api_key_env": VARIABLE, "captions_per_request": 5, **settings}
    data |= {"root": str(store), "unit_size": 10, "caption": {"source": "openai", "count": 30, "openai": llm}}
    file = store.parent / "llm.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def bootpig(api: str, config: Path, key: str | None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PREFECT_API_URL": api} | ({} if key is None else {VARIABLE: key})
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "bootpig",
            "run",
            str(config),
            "--until",
            "caption",
        ],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def holding(key: str, *folders: Path) -> list[Path]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if key.encode() in path.read_bytes()]


def database() -> Path:
    """The folder of the test server's database, with its write-ahead log."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    file = Path(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition(":///")[2])
    assert b"caption" in file.read_bytes() + Path(f"{file}-wal").read_bytes(), "the runs stand in it"
    return file.parent


def test_a_capped_run_says_so_and_a_secret_block_goes_on_and_the_key_is_nowhere(
    prefect_api: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.blocks.system import Secret

    store = tmp_path / "store"
    capped = bootpig(prefect_api, captions(store, url, cap_tokens=1000), KEY)
    assert capped.returncode == 0, capped.stderr
    assert "3 units: 1 made, 0 cached, 2 left pending: 1-2" in capped.stdout
    told = [line for line in capped.stdout.splitlines() if "cap_tokens" in line]
    assert (
        len(told) == 1
        and "caption unit 1: the spending cap caption.openai.cap_tokens 1000 would be exceeded" in told[0]
    )

    name = f"llm-{os.getpid()}"
    Secret(value=KEY).save(name)
    config = captions(store, url, api_key_secret=name)
    done = bootpig(prefect_api, config, None)
    assert done.returncode == 0, done.stderr
    assert "3 units: 2 made, 1 cached" in done.stdout

    for run in (capped, done):
        assert KEY not in run.stdout + run.stderr
    assert holding(KEY, store, database()) == []

    monkeypatch.setenv(VARIABLE, "set already")
    export_keys(load_config(config))
    assert os.environ[VARIABLE] == "set already", "the environment comes first"


def test_a_wrong_key_ends_the_run_with_one_line(prefect_api: str, url: str, tmp_path: Path) -> None:
    run = bootpig(prefect_api, captions(tmp_path / "store", url), "sk-wrong-0123456789")
    assert run.returncode == 2
    assert run.stderr == (
        f"caption.openai.api_key_env: '{VARIABLE}' → unauthorized: {url} refuses the key (401); "
        f"export a valid key in {VARIABLE}\n"
    )
    assert "sk-wrong" not in run.stdout
    assert holding("sk-wrong-0123456789", tmp_path, database()) == []


def test_a_missing_key_is_found_before_prefect_starts(prefect_api: str, url: str, tmp_path: Path) -> None:
    run = bootpig(prefect_api, captions(tmp_path / "store", url), None)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith(f"caption.openai.api_key_env: '{VARIABLE}' → this environment variable is not set")
    assert run.stderr.count("\n") == 1


def test_a_key_pasted_into_the_config_is_not_repeated(url: str, tmp_path: Path) -> None:
    pasted = captions(tmp_path / "store", url, api_key=KEY, base_url=f"https://me:{KEY}@example.org/v1")
    run = bootpig("http://127.0.0.1:9/api", pasted, None)
    assert run.returncode == 2
    assert KEY not in run.stderr and run.stderr.count("(not shown)") == 2
