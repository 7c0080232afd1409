"""The values of each measure, computed by hand on tiny inputs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from bootpig.models.pipelines.card import METRICS
from bootpig.stages.evaluate.drawing import Drawing
from bootpig.stages.evaluate.gallery import NOT_FINITE
from bootpig.stages.evaluate.measures.background import scene_of, without_subject
from bootpig.stages.evaluate.measures.copying import CopyPaste
from bootpig.stages.evaluate.measures.diversity import Diversity
from bootpig.stages.evaluate.measures.fidelity import Fidelity
from bootpig.stages.evaluate.measures.identity import match, subject_square
from bootpig.stages.evaluate.measures.likeness import Likeness
from bootpig.stages.evaluate.measures.measure import REASONS, Features, RealVectors, TextVectors
from bootpig.stages.evaluate.measures.names import DIRECTION, MEASURES
from bootpig.stages.evaluate.results import measure_groups, results_table
from bootpig.stages.evaluate.subjects import Subject

ROOT_HALF = 0.5**0.5


class Colours:
    """Embeds a picture as its mean colour, and a text as the colour that it names."""

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        return np.array([np.asarray(image, np.float32).mean(axis=(0, 1)) / 255 for image in images], np.float32)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([{"red": RED, "yellow": BOTH}[text.split()[-1]] for text in texts], np.float32)


def subject(folder: Path, references: Sequence[str], real: Sequence[str], **changes: object) -> Subject:
    """A subject whose pictures have the colours that their names say."""
    paths = {name: folder / f"{name}.png" for name in {*references, *real}}
    for name, path in paths.items():
        Image.new("RGB", (8, 8), name.rstrip("0123456789")).save(path)
    given = {"captions": {}, **changes}
    chosen, others = ([paths[name] for name in names] for names in (references, real))
    return Subject("mug", "mug", ("a mug",), tuple(chosen), tuple(others), **given)  # type: ignore[arg-type]


def rows(subject: Subject, prompts: Sequence[str]) -> list[Drawing]:
    return [Drawing(subject, prompt, f"{number}.png", number) for number, prompt in enumerate(prompts)]


RED, LIME, BOTH = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 1.0, 0.0)


def features(*vectors: Sequence[float] | str) -> Features:
    return Features.of([v if isinstance(v, str) else np.array(v, np.float32) for v in vectors])


def test_likeness_is_the_mean_over_real_pictures(tmp_path):
    one = subject(tmp_path, ["blue"], ["red", "lime"])
    measure = Likeness(RealVectors(Colours()))
    found = measure.drawn(rows(one, ["a", "b", "c"]), features(RED, BOTH, "no_detection"))
    assert found.values[:2] == pytest.approx([0.5, ROOT_HALF])
    assert np.isnan(found.values[2]) and found.reasons == ("", "", "no_detection")
    assert measure.real(one) == pytest.approx(0.0)
    alone = Likeness(RealVectors(Colours())).real(subject(tmp_path, ["blue"], ["red"]))
    assert alone is None, "one picture has no pair"


def test_fidelity_is_a_cosine_with_the_caption(tmp_path):
    one = subject(tmp_path, ["blue"], ["red", "lime"], captions={"red.png": "a mug, yellow"})
    measure = Fidelity(RealVectors(Colours()), TextVectors(Colours()))
    found = measure.drawn(rows(one, ["a mug, red", "a mug, yellow"]), features((5, 0, 0), RED))
    assert found.values == pytest.approx([1.0, ROOT_HALF]), "lengths do not count, and nothing is multiplied by 100"
    assert measure.real(one) == pytest.approx(ROOT_HALF)
    assert measure.real(subject(tmp_path, ["blue"], ["red"])) is None


def test_copy_paste_compares_with_other_real_pictures(tmp_path):
    one = subject(tmp_path, ["red"], ["yellow", "lime"])
    found = CopyPaste(RealVectors(Colours())).drawn(rows(one, ["a", "b"]), features(RED, LIME))
    usual = (ROOT_HALF + 0) / 2
    assert found.values == pytest.approx([1 - usual, 0 - usual])


def test_copy_paste_takes_the_reference_that_was_copied_and_never_compares_it_with_itself(tmp_path):
    one = subject(tmp_path, ["red", "lime"], ["red", "lime", "yellow"])
    found = CopyPaste(RealVectors(Colours())).drawn(rows(one, ["a"]), features(LIME))
    assert found.values == pytest.approx([1 - (0 + ROOT_HALF) / 2])


def test_copy_paste_needs_another_picture(tmp_path):
    one = subject(tmp_path, ["red"], ["red"])
    found = CopyPaste(RealVectors(Colours())).drawn(rows(one, ["a"]), features(LIME))
    assert found.reasons == ("no_other_real_picture",) and np.isnan(found.values[0])


def test_diversity_is_the_mean_distance_within_a_caption(tmp_path):
    one = subject(tmp_path, ["red"], ["red", "lime"])
    drawn = rows(one, ["a", "a", "a", "b", "c", "c"])
    found = Diversity().drawn(drawn, features(RED, RED, LIME, RED, RED, "no_detection"))
    assert found.values[:3] == pytest.approx([0.5, 0.5, 1.0])
    assert found.values[:3].mean() == pytest.approx((0 + 1 + 1) / 3), "the mean over all pairs"
    assert found.reasons == ("", "", "", "no_other_picture", "no_other_picture", "no_detection")


def test_parts_are_matched_in_both_directions():
    a, b = np.array([[1.0, 0], [0, 1]], np.float32), np.array([[2.0, 0], [1, 1], [1, 0]], np.float32)
    # best matches: of a 1 and √½; of b 1, √½ and 1
    assert match(a, b) == pytest.approx(((1 + ROOT_HALF) / 2 + (2 + ROOT_HALF) / 3) / 2)
    assert match(a, b) == match(b, a)
    assert match(a, a) == pytest.approx(1)


@pytest.mark.parametrize(("height", "width"), [(40, 20), (3, 2), (64, 64)])
def test_a_subject_stands_on_white_in_the_middle_of_a_square(height, width):
    mask = np.zeros((64, 64), bool)
    mask[:height, 64 - width :] = True
    picture = Image.new("RGB", (64, 64), "blue")
    square, inside = subject_square(picture, mask)
    assert square.size == inside.shape == (square.width, square.width)
    assert np.count_nonzero(inside) == height * width
    pixels = np.asarray(square)
    assert (pixels[inside] == (0, 0, 255)).all() and (pixels[~inside] == 255).all()
    rows, columns = np.nonzero(inside)
    assert abs(rows.mean() - (square.width - 1) / 2) <= 0.5 and abs(columns.mean() - (square.width - 1) / 2) <= 0.5


@pytest.mark.parametrize(
    ("caption", "scene"),
    [
        ("a mug in the jungle", "in the jungle"),
        ("A photo of a red mug, on the left in a green meadow", "in a green meadow"),
        ("a photo of a mug, in the center, under a starry night sky.", "under a starry night sky"),
        ("a mug with a city in the background", "with a city in the background"),
        ("On a sandy beach, a blue mug", "On a sandy beach"),
        ("A photo of a mug", None),
        ("a red mug", None),
        ("a shiny, red mug", None),
        ("a mug wearing a santa hat", None),
        ("a mugshot in the jungle", None),
        ("", None),
        ("a mug on the left", None),
    ],
)
def test_the_scene_of_a_caption(caption, scene):
    assert scene_of(caption, "mug") == scene


def test_the_subject_and_its_outline_are_painted_over():
    picture = Image.new("RGB", (100, 50), "blue")
    mask = np.zeros((50, 100), bool)
    mask[20:30, 40:60] = True
    rest = np.asarray(without_subject(picture, mask))
    assert (rest[18:32, 38:62] == (122, 117, 104)).all()
    assert (rest[:15] == (0, 0, 255)).all() and (rest[:, :35] == (0, 0, 255)).all()
    assert np.asarray(picture).tolist() == np.asarray(Image.new("RGB", (100, 50), "blue")).tolist(), "it is a copy"
    assert without_subject(picture, np.ones((50, 100), bool)) == "no_background"


def test_features_are_stored_with_their_reasons():
    some, none = features(RED, "no_detection"), features("no_mask", "é")
    again = Features.unpack(some.pack())
    assert again.reasons == some.reasons
    assert np.array_equal(again.vectors, some.vectors, equal_nan=True) and again.vectors.dtype == np.float32
    joined = Features.join([none, Features.unpack(none.pack()), some])
    assert joined.vectors.shape == (6, 3)
    assert joined.reasons == ("no_mask", "é", "no_mask", "é", "", "no_detection")


def test_every_measure_and_reason_is_documented_and_on_the_card():
    text = (Path(__file__).parents[4] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name, facts in MEASURES.items():
        assert f"| `{name}` | {DIRECTION[facts.higher_is_better]} |" in text
        assert METRICS[name] == f"{facts.title} {DIRECTION[facts.higher_is_better]}"
    assert list(METRICS) == list(MEASURES)
    for reason in (*REASONS, NOT_FINITE, "error", "no_detection", "low_score", "no_mask", "low_sam_quality"):
        assert f"`{reason}`" in text


@pytest.mark.parametrize("count", range(1, 11))
def test_measures_are_shown_in_tables_of_at_most_four(count):
    names = list(MEASURES)[:count]
    value = {"mean": 0.5, "ci95": [0.4, 0.6]}
    methods = {"bootpig": dict.fromkeys(names, value), "real": {names[0]: None, "of_a_later_version": value}}
    groups = measure_groups({"subjects": 2, "images": 4, "methods": methods})
    assert [place for places, _ in groups for place in places] == list(range(count))
    assert all(1 <= len(facts) == len(places) <= 4 for places, facts in groups)
    assert [facts.title for _, group in groups for facts in group] == [MEASURES[name].title for name in names]


def test_the_tables_say_what_is_missing_and_which_way_is_better():
    value = {"mean": 0.5, "ci95": [0.4, 0.6]}
    metrics = {
        "subjects": 2,
        "images": 8,
        "not_finite": {"bootpig": 1},
        "unscored": {"identity": {"bootpig": {"no_detection": 2}, "text_only": {"no_detection": 1, "no_mask": 1}}},
        "methods": {method: {"identity": value, "copy_paste": value} for method in ("text_only", "bootpig")},
    }
    console = Console(width=100, file=io.StringIO())
    console.print(results_table(metrics))
    text = console.file.getvalue()
    assert "identity ↑" in text and "copy-paste ↓" in text
    assert "0.500 ± 0.100 (5 of 8)" in text and "(6 of 8)" in text
    assert "identity: not measured in some pictures (3 no_detection, 1 no_mask)" in text
    assert text.count("of 8)") == 2
