"""Numbers, words and sizes as people type them; and the net below everything."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bootpig.flows.cli import commands
from bootpig.flows.cli.main import main
from bootpig.flows.demo_server import parameters
from bootpig.flows.loading import dump_config, load_config, parse_config, shipped_configs
from bootpig.flows.parameters import LIMIT, StoredParameters, by_value_or_reference, opened
from bootpig.flows.runs.records import new_run
from bootpig.flows.selection import known_units, parse_units
from bootpig.flows.stage_run import numbers
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError, StageConfig
from bootpig.stages.engine.survey import graph_of
from bootpig.storage.root import Root

TOY = shipped_configs()["toy"]


@pytest.mark.parametrize("word", ["no", "bf16"])
def test_words_of_a_choice_are_words(word: str) -> None:
    assert load_config(TOY, [f"train.mixed_precision={word}"]).train.mixed_precision == word


def test_truth_values_stay_truth_values() -> None:
    assert load_config(TOY, ["train_on_partial=yes"]).train_on_partial is True
    with pytest.raises(InputError, match=r"train\.mixed_precision: True"):
        load_config(TOY, ["train.mixed_precision=yes"])


NUMBERS = {
    "seed": ["yes", "no", "on", "off", "true", "0b11", "1:30", "12:30:00", "2024-01-01"],
    "caption.count": ["on", "12:30", "1e3", "ten", "[10]", "~"],
    "train.weight_decay": ["yes", "no", "1:30.5", "1,5", ""],
    "train.betas": ["[yes, 0.9]", "[0.9, no]", "yes"],
    "augment.jitter": ["[on, 0, 0, 0]"],
    "train.steps": ["1" + "0" * 30, "true"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in NUMBERS.items() for value in values])
def test_what_is_no_number_is_refused(field: str, value: str) -> None:
    """YAML 1.1 reads `yes` as 1 where pydantic wants a number, and 12:30 as 750."""
    with pytest.raises(InputError) as told:
        load_config(TOY, [f"{field}={value}"])
    assert str(told.value).startswith(field) and len(str(told.value)) < 300


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("seed=010", 10), ("seed=1_000", 1000), ("seed=0x10", 16), ("seed=+5", 5), ("threads=2.0", 2), ("seed=08", 8)],
)
def test_numbers_are_what_they_look_like(setting: str, expected: int) -> None:
    assert getattr(load_config(TOY, [setting]), setting.partition("=")[0]) == expected


@pytest.mark.parametrize("word", ["0123456", "2024-01-01", "12:30", "1e10", "0b11"])
def test_names_are_what_they_look_like(word: str) -> None:
    config = load_config(TOY, [f"synthesize.revision={word}"])
    assert config.synthesize.revision == word
    assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize("word", ["1234567", "1.10", "yes", "off"])
def test_a_name_that_yaml_sees_something_else_in_wants_quotes(word: str) -> None:
    with pytest.raises(InputError, match=r"^synthesize.revision: .* → must be a valid string; write it in quotes"):
        load_config(TOY, [f"synthesize.revision={word}"])
    assert load_config(TOY, [f'synthesize.revision="{word}"']).synthesize.revision == word


def floats(model: type[StageConfig], prefix: str = "") -> list[str]:
    """The fields of a configuration that take a number. In a list of sections, that of the first."""
    found = []
    for name, field in model.model_fields.items():
        first = ".0" if getattr(field.annotation, "__origin__", None) in (list, tuple) else ""
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if kind is float:
                found.append(f"{prefix}{name}")
            elif isinstance(kind, type) and issubclass(kind, StageConfig):
                found += floats(kind, f"{prefix}{name}{first}.")
    return found


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("field", floats(PipelineConfig))
def test_no_number_is_nan_or_infinite(field: str, value: str) -> None:
    section, in_list, name = field.partition(".0.")
    with pytest.raises(InputError) as told:
        load_config(TOY, [f"{section}=[{{{name}: {value}}}]" if in_list else f"{field}={value}"])
    assert field in str(told.value)


@pytest.mark.parametrize("option", ["--strength", "--guidance-scale", "--reference-guidance-scale"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_nor_one_of_the_command_line(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["generate", "model", "--prompt", "A photo of a mug, here", f"{option}={value}"])
    assert ended.value.code == 2 and option in capsys.readouterr().err


WRONG = [[], ["frob"], ["run", "--frob"], ["gc", "--keep", "x"], ["generate", "m", "--steps", "1.5"], ["runs", "frob"]]
WRONG += [
    ["evaluate", "m"],
    ["plan"],
    ["run", "a", "b\nc"],
    ["generate", "m", "--seed", "a" * 9999],
    ["--print-completion", "x"],
]


@pytest.mark.parametrize("arguments", WRONG)
def test_a_wrong_option_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and len(said) < 500 and said.endswith(" --help\n")


@pytest.mark.parametrize(
    ("text", "expected"), [("3,17,20-24", [3, 17, 20, 21, 22, 23, 24]), (" 1 - 3 , 2", [1, 2, 3]), ("5,5,0", [0, 5])]
)
def test_units_as_people_write_them(text: str, expected: list[int]) -> None:
    assert parse_units(text) == expected


@pytest.mark.parametrize(
    "text", ["", " ", "-", "1-", "-3", "1,,2", "1;2", "1..3", "²", "0x1", "1-2-3", "9-3", "a" * 9999]
)
def test_what_names_no_units_is_short_and_says_how(text: str) -> None:
    with pytest.raises(
        InputError, match=r"^units: .* → (write numbers and ranges|ends before it begins; write 3-9)"
    ) as told:
        parse_units(text)
    assert len(str(told.value)) < 300


def test_a_run_has_no_end_of_units() -> None:
    with pytest.raises(InputError, match=r"^unit_size: 1 makes 1000000000 units .* raise unit_size$"):
        load_config(TOY, ["caption.count=1000000000", "unit_size=1"])


SPANS = ["0-9999999999", "0-99999999999999999999", "9" * 5000, "0-1000000", "1-" + "9" * 5000]


@pytest.mark.parametrize("text", SPANS)
def test_a_span_of_units_is_not_expanded_without_end(text: str) -> None:
    with pytest.raises(InputError, match=r"^units: ") as told:
        parse_units(text)
    assert len(str(told.value)) < 300


def test_a_long_list_of_wrong_units_is_short() -> None:
    config = load_config(TOY)
    with pytest.raises(InputError) as told:
        known_units(config, graph_of(config), ["segment"], range(100_000))
    assert len(str(told.value)) < 300
    assert len(numbers(range(0, 1_000_000, 2))) < 400


def large() -> PipelineConfig:
    return load_config(TOY, [f"caption.objects={json.dumps([f'a mug of kind {k}' for k in range(15_000)])}"])


def test_large_parameters_go_by_reference(tmp_path: Path) -> None:
    small = load_config(TOY, [f"root={tmp_path}"])
    assert by_value_or_reference(small, [1, 2], small) == {"config": small, "units": [1, 2]}
    config = large().model_copy(update={"root": str(tmp_path)})
    passed = by_value_or_reference(config, None, small)
    stored = passed["stored"]
    assert isinstance(stored, StoredParameters) and len(passed["config"].model_dump_json()) < LIMIT
    assert opened(passed["config"], None, stored) == (config, None)
    units = list(range(0, 100_000, 2))
    passed = by_value_or_reference(small, units, small)
    assert opened(passed["config"], None, passed["stored"]) == (small, units)
    (tmp_path / "parameters" / f"{stored.sha256}.json").write_text("{}")
    with pytest.raises(InputError, match=r"^stored: .* missing or altered"):
        opened(small, None, stored)


def test_a_demo_of_a_large_configuration_is_a_short_command(tmp_path: Path) -> None:
    config = load_config(TOY, [f"root={tmp_path}", "caption.count=100"])
    assert json.loads(parameters(config)) == {"config": config.model_dump(mode="json", exclude_unset=True)}
    config = large().model_copy(update={"root": str(tmp_path)})
    passed = json.loads(parameters(config))
    assert len(json.dumps(passed)) < LIMIT
    stand_in = PipelineConfig.model_validate(passed["config"])
    assert opened(stand_in, None, StoredParameters.model_validate(passed["stored"])) == (config, None)


@pytest.mark.slow
def test_a_large_configuration_runs(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    file.write_text(dump_config(large()), encoding="utf-8")
    assert len(file.read_bytes()) > 2**18
    done = subprocess.run(
        [sys.executable, "-m", "bootpig", "run", str(file), "--until", "caption", f"--set=root={tmp_path / 'store'}"]
        + ["--set=caption.count=100"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "store").glob("parameters/*.json"))


def test_what_nobody_expected_is_one_line_with_its_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "correct-horse-battery")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def broken(asked: argparse.Namespace) -> int:
        raise RuntimeError("first line with correct-horse-battery\nsecond line")

    monkeypatch.setattr(commands, "runs", broken)
    assert main(["runs", "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    (log,) = tmp_path.glob("bootpig-*.log")
    assert said.startswith("unexpected error: RuntimeError: first line with ***") and said.count("\n") == 1
    assert str(log) in said
    assert "in broken" in log.read_text() and "horse" not in log.read_text()


def test_its_log_goes_elsewhere_where_there_is_no_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(asked: argparse.Namespace) -> int:
        raise RuntimeError("oh")

    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(commands, "runs", broken)
    monkeypatch.setattr("tempfile.gettempdir", none)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["runs", "--root", str(tmp_path)]) == 1
    (log,) = tmp_path.glob("bootpig-*.log")
    said = capsys.readouterr().err
    assert str(log) in said and said.count("\n") == 1 and "in broken" in log.read_text()


@pytest.mark.parametrize("command", ["plan", "status"])
def test_a_root_with_brackets_is_shown_as_it_is(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "toy", f"--set=root={tmp_path / 'data [v2]'}"]) == 0
    assert "data [v2]" in capsys.readouterr().out


def test_so_is_the_place_of_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Root(str(tmp_path / "data [v2] [bold]"))
    record = new_run(root, load_config(TOY))
    root.write(f"{record.folder}/report.html", b"")
    commands._conclude(root, record, "done")
    assert "data [v2] [bold]/runs/" in capsys.readouterr().out
