"""Loading YAML files and overrides, and error messages for invalid ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bootpig.flows.loading import dump_config, load_config, parse_config
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError

TOY = Path(__file__).parents[2] / "configs" / "toy.yaml"


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse_config(text, overrides)
    return str(caught.value).splitlines()


def test_overrides_are_yaml_and_the_last_one_wins() -> None:
    config = load_config(TOY, ["caption.count=7", "caption.count=12", "evaluate.prompts=['a {object}']", "seed=3"])
    assert (config.caption.count, config.seed, config.evaluate.prompts) == (12, 3, ("a {object}",))


def test_every_problem_is_found_at_once() -> None:
    lines = problems(TOY.read_text(), "caption.cuont=3", "train.steps=0", "unit_size=ten", "surprise=1", "no equals")
    assert [line.split(":")[0] for line in lines] == [
        "--set",
        "unit_size",
        "caption.cuont",
        "train.steps",
        "surprise",
    ]
    assert all("→" in line for line in lines)
    assert "did you mean 'count'" in next(line for line in lines if "cuont" in line)
    assert "greater than or equal to 1" in next(line for line in lines if "train.steps" in line)


def test_a_missing_setting_is_named() -> None:
    data = yaml.safe_load(TOY.read_text())
    del data["segment"]
    del data["synthesize"]["model"]
    lines = problems(yaml.safe_dump(data))
    needed = "synthesize: source 'diffusers' needs model: a text-to-image pipeline, a local folder or a hub id"
    assert sorted(lines) == ["segment: missing → must be given", needed]


def test_a_nested_misspelling_is_corrected() -> None:
    (line,) = problems(TOY.read_text(), "train.trainable.bsae=rsa")
    assert line == "train.trainable.bsae: 'rsa' → there is no such setting; did you mean 'base'?"


def test_fields_that_do_not_go_together_are_named() -> None:
    (line,) = problems(TOY.read_text(), "segment.min_score=0.0")
    assert line.startswith("segment: detection_threshold 0.05 is above min_score 0.0")
    (line,) = problems(TOY.read_text(), "runner_address=head:6379")
    assert line.startswith("runner_address: 'head:6379' has no effect")


def test_unreadable_yaml_is_one_line() -> None:
    (line,) = problems("name: [toy")
    assert "line 1" in line
    assert "fix the YAML" in line


def test_a_key_given_twice_is_an_error() -> None:
    (line,) = problems("name: a\nname: b\n")
    assert "'name' is given twice" in line


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b\n"])
def test_a_file_that_holds_no_settings(text: str) -> None:
    (line,) = problems(text)
    assert "must contain settings" in line


def test_a_missing_or_binary_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        load_config(tmp_path / "nope.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\x89PNG\x00")
    with pytest.raises(InputError, match="is not UTF-8"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path)


def test_an_override_below_a_value(tmp_path: Path) -> None:
    (line,) = problems(TOY.read_text(), "seed.deeper=1")
    assert "'seed' is a value" in line


def test_a_written_config_reads_back_as_itself(tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("A photo of a mug, on a table\n")
    for overrides in (["caption.count=5"], [f"caption={{source: file, count: 1, file: {captions}}}"]):
        config = load_config(TOY, overrides)
        assert parse_config(dump_config(config)) == config


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(InputError) as error:
        load_config(TOY, ["root=s3://key:hunter2@bucket/x", "segment.sam=https://me:hunter2@host/sam.safetensors"])
    lines = str(error.value).splitlines()
    assert lines[0].startswith("root: 's3://***@bucket/x' → holds credentials") and len(lines) == 2
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("path", sorted(TOY.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_with_every_default_written_out_is_valid(path: Path) -> None:
    # as a form of parameters in Prefect's UI sends it
    config = load_config(path)
    assert PipelineConfig.model_validate(config.model_dump(mode="json")) == config
