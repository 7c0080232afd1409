"""The command line without a server: exit codes, messages, JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bootpig.flows.cli.main import main
from bootpig.flows.loading import load_config
from bootpig.flows.runs.records import new_run
from bootpig.storage.root import Root

PROJECT = Path(__file__).parents[3]
TOY = str(PROJECT / "configs" / "toy.yaml")


def sets(settings: list[str]) -> list[str]:
    return [word for override in settings for word in ("--set", override)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", TOY, "--set", "caption.cuont=3"],
            "caption.cuont: 3 → there is no such setting; did you mean 'count'",
        ),
        (["run", TOY, "--set", "seed=-1"], "seed: -1 → must be greater than or equal to 0"),
        (["run", "nope.yaml"], "config: 'nope.yaml' → there is no such file"),
        (["run"], "config: missing → give a YAML file"),
        (["run", TOY, "--only", "segmint"], "--only: 'segmint' → there is no such stage; did you mean 'segment'?"),
        (["run", TOY, "--until", "x"], "until: 'x' → there is no such stage"),
        (["run", TOY, "--only", "caption", "--units", "400"], "units: 400 → not in this run"),
        (["run", TOY, "--only", "caption", "--units", "a"], "units: 'a' → write numbers"),
        (["run", TOY, "--units", "1"], "--units: → needs --only STAGE"),
        (["run", TOY, "--only", "caption", "--until", "encode"], "--only: 'caption' → leave out --from and --until"),
        (["run", TOY, "--run", "latest"], "--run: 'latest' → uses the config of that run"),
        (["run", "--run", "latest"], "run: 'latest' → no run in"),
        (["run", TOY, "--set", "synthesize.model=/nowhere"], "synthesize.model: '/nowhere' does not exist"),
        (["status", TOY, "--set", "root=nofs://x"], "root: 'nofs://x' cannot be opened"),
        (["runs", "promote", "nope"], "run: 'nope' → there is no such run"),
        (["generate", "nope", "--prompt", "A photo of a mug"], "run: 'nope' → there is no such run"),
        (["generate", ".", "--prompt", "A photo of a mug"], "model: '.' → holds no bootpig.json"),
        (["generate", ".", "--prompt", "x", "--count", "0"], "--count: 0 → must be from 1"),
    ],
)
def test_bad_input_is_one_line_and_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith(message)
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_an_empty_captions_file_is_named(
    settings: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("\n")
    caption = f"caption={{source: file, count: 10, file: {captions}}}"
    assert main(["run", TOY, *sets([*settings, caption])]) == 2
    assert "caption.file" in capsys.readouterr().err


def test_a_store_that_cannot_be_written(
    settings: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert main(["run", TOY, *sets([*settings, f"root={tmp_path / 'file'}"]), "--until", "caption"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("root: ")
    assert error.count("\n") == 1


def test_status_counts_units_by_state(settings: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["status", TOY, "--json", *sets(settings)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == ["root", "stages"]
    assert list(facts["stages"]) == ["caption", "synthesize", "segment", "augment", "encode", "train", "evaluate"]
    for name, stage in facts["stages"].items():
        assert stage.pop("newest", None) == ({} if name == "train" else None)
        assert list(stage) == ["fingerprint", "path", "units", "rows"]
        assert list(stage["units"]) == ["complete", "stale", "failed", "pending"]
        assert stage["rows"] == {"ok": 0, "rejected": {}, "failed": {}}
        assert stage["units"]["pending"] == (1 if name in ("train", "evaluate") else 4)
    assert not (tmp_path / "store").exists()
    assert main(["status", TOY, *sets(settings)]) == 0
    assert "caption" in capsys.readouterr().out


def test_plan_lists_missing_models_and_touches_nothing(
    settings: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    overrides = sets([*settings[:3], "synthesize.model=/nowhere", "segment.sam=/nowhere-else"])
    assert main(["plan", TOY, "--json", *overrides]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [problem.split(":")[0] for problem in facts["missing"]] == ["synthesize.model", "segment.sam"]
    assert facts["stages"]["caption"]["units"] == {"total": 4, "cached": 0, "due": 4}
    assert all(stage["gpu_hours"] >= 0 and stage["cost_usd"] >= 0 for stage in facts["stages"].values())
    assert facts["total"]["gpu_hours"] > 0
    assert facts["assumptions"]
    assert not (tmp_path / "store").exists()


def test_runs_are_listed(settings: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = load_config(TOY, settings)
    record = new_run(Root(config.root), config)
    assert main(["runs", "--root", config.root, "--json"]) == 0
    assert [run["id"] for run in json.loads(capsys.readouterr().out)] == [record.id]
    assert main(["runs", "--root", config.root, "diff", record.id, record.id]) == 0
    assert main(["runs", "promote", record.id, "--root", config.root]) == 2
    assert "only a run that is done" in capsys.readouterr().err
    record.state = "done"
    record.save(Root(config.root))
    assert main(["runs", "promote", record.id, "--root", config.root]) == 2
    assert "did not make a complete data set" in capsys.readouterr().err
    record.use("encode", "0" * 16)
    record.save(Root(config.root))
    assert main(["runs", "promote", record.id, "--root", config.root]) == 0
    assert capsys.readouterr().out == f"latest: {record.id}\n"


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/api", "no address"])
def test_a_server_that_is_not_there_is_one_line(
    settings: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", address)
    for command in (["setup-server"], ["run", TOY, *sets(settings[:3])]):  # with models that can be opened
        assert main(command) == 1
        said = capsys.readouterr()
        fault = "no Prefect server answers there" if "://" in address else "is no address of a server"
        assert said.err.startswith(f"PREFECT_API_URL: {address!r} → {fault}")
        assert said.err.count("\n") == 1
        assert said.out == ""


def test_verify_finds_nothing_in_an_empty_store(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", TOY, *sets(settings)]) == 0
    assert "all checksums match" in capsys.readouterr().out


def test_looking_needs_no_prefect_and_status_no_torch(settings: list[str]) -> None:
    program = (
        "import sys; from bootpig.flows.cli.main import main; code = main(sys.argv[2:]);"
        "heavy = set(sys.argv[1].split()) & sys.modules.keys();"
        "print(heavy or 'light', file=sys.stderr); sys.exit(code)"
    )
    # plan builds the classes of models, as far as their shapes
    for command, heavy in (("status", "prefect torch diffusers transformers"), ("plan", "prefect")):
        done = subprocess.run(
            [sys.executable, "-c", program, heavy, command, TOY, *sets(settings)],
            capture_output=True,
            text=True,
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "light\n")
