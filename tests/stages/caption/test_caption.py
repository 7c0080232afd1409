"""Captions are drawn by (seed, unit, index) and parsed; bad input gives a one-line error."""

import hashlib
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from bootpig.models.toy.world import KINDS, POSITIONS, SCENES, with_article
from bootpig.stages.caption.config import CaptionConfig
from bootpig.stages.caption.phrases import object_phrase
from bootpig.stages.caption.stage import Caption
from bootpig.stages.engine.contract import InputError, Sample

LISTS = {
    "objects": [with_article(kind) for kind in KINDS],
    "positions": list(POSITIONS),
    "scenes": list(SCENES),
}


def grammar(**changes) -> CaptionConfig:
    return CaptionConfig(**{"count": 40, **LISTS, **changes})


def from_file(tmp_path: Path, data: str | bytes, **changes) -> Caption:
    file = tmp_path / "captions.txt"
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return Caption(CaptionConfig(**{"source": "file", "file": str(file), "count": 1, **changes}), seed=0)


def made(stage: Caption, unit: int, indices: range) -> list[Sample]:
    return stage.process(stage.draw(unit, indices))


def test_golden_captions():
    """Guards `Caption.version`: the same config and seed must always give the same rows."""
    samples = made(Caption(grammar(), seed=7), 1, range(10, 20))
    assert samples[0].id == "1f968073cdce5582"
    assert samples[0].meta == {
        "caption": "A photo of a vase, in the center on a city street at sunset",
        "object": "vase",
    }
    rows = json.dumps([[s.id, s.unit, s.meta, s.columns] for s in samples], sort_keys=True)
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == "193d3b922be4a611"


def test_a_draw_depends_on_seed_unit_and_index_only():
    def captions(seed: int, unit: int, indices: range) -> list[str]:
        return [s.meta["caption"] for s in made(Caption(grammar(), seed), unit, indices)]

    whole = captions(0, 0, range(100))
    assert captions(0, 0, range(50, 60)) == whole[50:60]
    assert captions(1, 0, range(100)) != whole
    assert captions(0, 1, range(100)) != whole
    assert len(set(whole)) > 60


def test_ids_differ_where_captions_repeat():
    config = grammar(objects=["a mug"], positions=["here"], scenes=["now"])
    samples = made(Caption(config, 0), 0, range(20))
    assert {s.meta["caption"] for s in samples} == {"A photo of a mug, here now"}
    assert len({s.id for s in samples}) == 20


def test_count_is_not_hashed():
    assert grammar(count=40).hashed() == grammar(count=80).hashed()
    assert grammar().hashed() != grammar(scenes=["on the moon"]).hashed()


@pytest.mark.parametrize(
    ("caption", "phrase"),
    [
        ("A photo of a teapot, on the left on a sandy beach", "teapot"),
        ("A photo of an umbrella, in the center on a blue carpet", "umbrella"),
        ("a photo of a faded Polaroid camera , lying on a blanket", "faded Polaroid camera"),
        ("A photo of teapots, on the left", "teapots"),
        ("A photo of a teapot on the left", None),
        ("A photo of a , on the left", None),
        ("A photo of a teapot,", None),
        ("Here are your captions:", None),
    ],
)
def test_object_phrase(caption: str, phrase: str | None):
    assert object_phrase(caption) == phrase


def test_a_line_without_object_is_a_rejected_row(tmp_path: Path):
    stage = from_file(tmp_path, "A photo of a mug, here\nnonsense\n\nA photo of an egg, there\n", count=3)
    good, bad, last = made(stage, 0, range(5))
    assert (good.status, good.meta["object"]) == ("ok", "mug")
    assert (bad.status, bad.reason, bad.columns) == ("rejected", "no_object", {"index": 1, "caption": "nonsense"})
    assert (last.columns["index"], last.meta["object"]) == (2, "egg")


def test_a_unit_of_a_file_depends_on_its_own_lines(tmp_path: Path):
    lines = [f"A photo of a mug, place {i}" for i in range(8)]
    before = from_file(tmp_path, "\n".join(lines))
    digests = [before.source_digest(unit, range(4 * unit, 4 * unit + 4)) for unit in range(2)]
    lines[5] = "A photo of a vase, elsewhere"
    after = from_file(tmp_path, "﻿" + "\r\n".join([*lines, "A photo of a ball, more"]))
    assert after.source_digest(0, range(4)) == digests[0]
    assert after.source_digest(1, range(4, 8)) != digests[1]
    assert [s.id for s in after.draw(0, range(4))] == [s.id for s in before.draw(0, range(4))]
    assert after.config.hashed() == before.config.hashed()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", r"caption\.file: '.*captions\.txt' contains no captions; write"),
        ("\n \n", r"caption\.file: '.*' contains no captions"),
        ("\nmug on a table\nx\n", r"caption\.file: '.*', line 2: 'mug on a table' has no object phrase.*; write"),
        (b"A photo of a mug, x\nA photo of a caf\xe9, y\n", r"caption\.file: '.*', line 2 → is not UTF-8; save"),
        ("A photo of a mug, x\n", r"caption\.count: 5 is more than the 1 captions of '.*'; lower it"),
    ],
)
def test_bad_file_is_one_line(tmp_path: Path, data: str | bytes, message: str):
    with pytest.raises(InputError, match=message) as caught:
        from_file(tmp_path, data, count=5).models()
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path):
    config = CaptionConfig(source="file", file=str(tmp_path / "gone.txt"), count=1)
    with pytest.raises(InputError, match=r"caption\.file: '.*gone\.txt' → cannot be read \(No such file.*\); give"):
        Caption(config, 0).models()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objects": []}, "needs objects"),
        ({"scenes": ["", "x"]}, "needs scenes"),
        ({"objects": ["teapot"]}, "'teapot' makes 'A photo of teapot, here here', which has no object phrase"),
        ({"template": "A photo of {thing}, {position} {scene}"}, r"unknown blanks \['thing'\]"),
        ({"template": "A photo of {object, {position}"}, "template"),
        ({"template": "A photo of {object}, {position}"}, "scenes is given, but the template has no {scene}"),
        ({"file": "x.txt"}, "file is used by source 'file' only"),
        ({"source": "file"}, "needs file.*"),
        ({"source": "openai"}, "needs openai: {model: …} at least"),
        ({"openai": {"model": "m"}}, "openai is used by source 'openai' only"),
        ({"openai": {"model": "m", "cap_usd": 1}}, "cap_usd needs price_input and price_output"),
        ({"openai": {"model": "m", "prompt": "{n} captions"}}, "only the blank {count} is allowed"),
        ({"openai": {"model": "m", "steering": "{objects"}}, "write {{ and }} for literal braces"),
        ({"openai": {"model": "m", "extra_body": {"n": 2}}}, "n cannot be set here"),
        ({"openai": {"model": "m", "base_url": "api.openai.com"}}, "give the endpoint's address"),
        ({"openai": {"model": "m", "base_url": "https://x/v1?key=1"}}, "remove user, password and query"),
        ({"openai": {"model": "m", "api_key_env": "sk-123"}}, "should match pattern"),
        ({"count": 0}, "greater than or equal to 1"),
        ({"captions": 3}, "Extra inputs"),
    ],
)
def test_bad_config_names_the_field(changes: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        grammar(**changes)


def test_every_problem_is_said_at_once():
    with pytest.raises(ValidationError, match=r"objects is used by source 'grammar' only.*needs file"):
        grammar(source="file")
