"""Pairs, the journal of votes, and what the votes say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from bootpig.stages.engine.contract import InputError
from bootpig.stages.evaluate.agreement import krippendorff_alpha
from bootpig.stages.study.evaluations import Shown, contestants, read_evaluation
from bootpig.stages.study.pairs import choose_pairs
from bootpig.stages.study.results import study_results, wilson
from bootpig.stages.study.study import Study, read_study
from bootpig.stages.study.votes import Judge, NameRefused, Vote, Votes
from tests.stages.study.evaluated import evaluation, refusal, study_of, write_evaluation


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return write_evaluation(tmp_path / "a"), write_evaluation(tmp_path / "b", red=200, side=64)


# Pairs


def test_pairs_show_the_same_subject_caption_and_number(tmp_path: Path, two: tuple[Path, Path]) -> None:
    study = study_of(tmp_path / "study", two)
    assert study.names == ("a", "b")
    assert len({(pair.subject, pair.prompt, pair.number) for pair in study.pairs}) == len(study.pairs) == 8
    for pair in study.pairs:
        first, other = (
            Image.open(tmp_path / "study" / file).convert("RGB") for file in (pair.first_file, pair.other_file)
        )
        assert first.size == other.size == (64, 64)
        (red, *colour), (other_red, *other_colour) = first.getpixel((9, 9)), other.getpixel((9, 9))
        assert (red, other_red) == (0, 200)
        assert colour == other_colour


def test_pictures_tell_nothing_but_what_they_show(tmp_path: Path, two: tuple[Path, Path]) -> None:
    study_of(tmp_path / "study", two)
    for path in (tmp_path / "study" / "pictures").iterdir():
        data = path.read_bytes()
        with Image.open(path) as picture:
            picture.load()
            assert (picture.mode, picture.info) == ("RGB", {})
        assert b"tEXt" not in data
        assert b"pHYs" not in data


def test_a_random_part_has_a_seed_and_is_drawn_among_all(two: tuple[Path, Path]) -> None:
    found = contestants([evaluation(path) for path in two], ())
    draws = [choose_pairs(found, 3, seed) for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert all(len(set(draw)) == 3 for draw in draws)
    assert len({pair for draw in draws for pair in draw}) > 3


def test_methods_of_one_run_and_several_rivals(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "run", methods=("text_only", "rival", "bootpig"))
    assert study_of(tmp_path / "default", [run]).names == ("bootpig", "text_only")
    study = study_of(tmp_path / "three", [run], ["bootpig", "rival", "text_only"])
    assert [pair.other for pair in study.pairs] == [1] * 8 + [2] * 8


def test_runs_with_fewer_pictures_share_those_that_both_have(tmp_path: Path, two: tuple[Path, Path]) -> None:
    lost = "images/bootpig/dog6-00-01.png"
    small = write_evaluation(tmp_path / "small", subjects=("cat", "dog6"), images=3, red=9, lost=[lost])
    shutil.copy(two[0] / "images/reference/dog6-00.png", small / "images/reference/dog6-00.png")
    found = contestants([evaluation(two[0]), evaluation(small)], ())
    shown = [pair.shown for pair in choose_pairs(found, None, 0)]
    assert shown == [Shown("dog6", "a mug in the snow", 0), Shown("dog6", "a mug in the snow", 1)] + [
        Shown("dog6", "a mug on a beach", 0)
    ]


def test_a_subject_of_the_same_name_with_another_reference_is_no_pair(tmp_path: Path, two: tuple[Path, Path]) -> None:
    Image.new("RGB", (64, 64), (0, 255, 0)).save(two[1] / "images" / "reference" / "dog6-00.png")
    found = contestants([evaluation(path) for path in two], ())
    assert {pair.shown.subject for pair in choose_pairs(found, None, 0)} == {"mug"}
    Image.new("RGB", (64, 64), (0, 255, 0)).save(two[1] / "images" / "reference" / "mug-00.png")
    assert "their references show other subjects" in refusal(choose_pairs, found, None, 0)


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, two: tuple[Path, Path]) -> None:
    a, b = (evaluation(path) for path in two)
    assert "given twice" in refusal(contestants, [a, a], ())
    same = evaluation(shutil.copytree(two[0], tmp_path / "copy"))
    assert "has the same pictures as 'a'" in refusal(contestants, [a, same], ())
    assert "add another --method" in refusal(contestants, [a], ["bootpig"])
    assert "it has text_only, bootpig" in refusal(contestants, [a], ["bootpig", "elite"])
    assert "3 methods for 2 RUNs" in refusal(contestants, [a, b], ["bootpig", "text_only", "bootpig"])
    assert "there are only 8 pairs" in refusal(choose_pairs, contestants([a, b], ()), 9, 0)
    other = evaluation(write_evaluation(tmp_path / "other", prompts=("a cat on a roof",), red=7))
    assert "no pair of pictures" in refusal(choose_pairs, contestants([a, other], ()), None, 0)


@pytest.mark.parametrize("file", ["../../secret.png", "/etc/hostname", "images/../../x.png", "a\0b.png"])
def test_scores_that_name_files_outside_are_refused(tmp_path: Path, file: str) -> None:
    import pyarrow as pa

    row = {"method": "bootpig", "subject": "s", "prompt": "p", "file": file}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "scores.parquet")
    assert "outside of its folder" in refusal(evaluation, tmp_path)


@pytest.mark.parametrize("data", [b"", b"PAR1 no", b"\0" * 99])
def test_damaged_scores_are_one_line(data: bytes) -> None:
    assert "cannot be read" in refusal(read_evaluation, "run", data, (), lambda names: Path())


def test_a_failed_start_leaves_nothing(tmp_path: Path, two: tuple[Path, Path]) -> None:
    (two[1] / "images" / "bootpig" / "mug-01-01.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="mug-01-01"):
        study_of(tmp_path / "study", two)
    assert [path.name for path in tmp_path.iterdir() if "study" in path.name] == []
    assert read_study(tmp_path / "study") is None


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts["pairs"][0].update(first_file="../../../etc/hostname"),
        lambda facts: facts["pairs"][0].update(references=["study.json"]),
        lambda facts: facts["pairs"][0].update(other=7),
        lambda facts: facts.pop("secret"),
    ],
)
def test_an_altered_study_is_one_line(tmp_path: Path, two: tuple[Path, Path], change) -> None:
    study_of(tmp_path / "study", two, count=1)
    file = tmp_path / "study" / "study.json"
    facts = json.loads(file.read_text())
    change(facts)
    file.write_text(json.dumps(facts))
    assert "study.json" in refusal(read_study, tmp_path / "study")


# Votes


@pytest.fixture
def study(tmp_path: Path, two: tuple[Path, Path]) -> Study:
    return study_of(tmp_path / "study", two)


def join(votes: Votes, name: str) -> Judge:
    judge = votes.of_token(votes.join(name))
    assert judge is not None
    return judge


def test_votes_are_there_after_a_restart_and_the_newest_counts(tmp_path: Path, study: Study) -> None:
    votes = Votes(tmp_path / "study", study)
    token = votes.join("Ada")
    judge = votes.of_token(token)
    assert judge is not None
    for vote in (Vote(3, "first", "other", "first"), Vote(5, "neither", "first", "other")):
        votes.vote(judge, vote)
    votes.vote(judge, Vote(3, "other", "neither", "first"))
    before = (tmp_path / "study" / "votes.jsonl").read_bytes()
    votes.vote(judge, Vote(3, "other", "neither", "first"))  # a double click
    assert (tmp_path / "study" / "votes.jsonl").read_bytes() == before
    assert token.encode() not in before

    again = Votes(tmp_path / "study", study)
    found = again.of_token(token)
    assert found == judge
    assert again.of_token(judge.token) is None
    table = pq.read_table(again.save_table())
    assert table.schema.metadata[b"bootpig.study"].decode() == study.id
    rows = table.to_pylist()
    assert [(row["pair"], row["truer"], row["follows"], row["left"]) for row in rows] == [
        (3, "other", "neither", "first"),
        (5, "neither", "first", "other"),
    ]
    assert (rows[0]["subject"], rows[0]["first"], rows[0]["other"]) == (study.pairs[3].subject, "a", "b")


def test_a_line_that_a_crash_cut_off_is_removed(tmp_path: Path, study: Study) -> None:
    journal = tmp_path / "study" / "votes.jsonl"
    votes = Votes(tmp_path / "study", study)
    votes.vote(join(votes, "Ada"), Vote(0, "first", "first", "first"))
    whole = journal.read_bytes()
    for cut in (1, 20, len(whole.splitlines()[-1])):
        journal.write_bytes(whole[:-cut])
        assert len(Votes(tmp_path / "study", study).rows()) == 0  # a reader changes nothing
        assert journal.read_bytes() == whole[:-cut]
        again = Votes(tmp_path / "study", study)
        (judge,) = again.judges.values()
        again.vote(judge, Vote(0, "other", "first", "first"))
        assert [row["truer"] for row in Votes(tmp_path / "study", study).rows()] == ["other"]


def test_votes_of_another_study_and_damaged_ones_are_one_line(tmp_path: Path, study: Study) -> None:
    votes = Votes(tmp_path / "study", study)
    votes.vote(join(votes, "Ada"), Vote(0, "first", "first", "first"))
    journal = tmp_path / "study" / "votes.jsonl"
    good = journal.read_text()
    journal.write_text(good.replace(study.id, "0" * 16))
    assert "votes of another study" in refusal(Votes, tmp_path / "study", study)
    for bad in (
        "{}\n",
        "no json\n",
        "[" * 9999 + "\n",
        good.replace('"pair":0', '"pair":99'),
        good.splitlines()[1] + "\n",
    ):
        journal.write_text(bad)
        assert "is no vote of a study" in refusal(Votes, tmp_path / "study", study)


def test_names_of_judges(tmp_path: Path, study: Study) -> None:
    votes = Votes(tmp_path / "study", study)
    names = ["Ada", "<b>Ada</b>", "Zoë 🐷", "李", "A" * 80, "ad\x1b[31ma\x07 2\u202e"]
    assert [join(votes, name).name for name in names] == [*names[:-1], "ada 2"]
    for name in ("", " \n\t", "\u200b\u202e", "A" * 81, "x" * 10_000, "ADA", " ada ", "\ud800"):
        with pytest.raises(NameRefused):
            votes.join(name)
    assert len(Votes(tmp_path / "study", study).judges) == len(names)


# Results


def test_results_against_counts_by_hand(tmp_path: Path, study: Study) -> None:
    votes = Votes(tmp_path / "study", study)
    empty = study_results(study, votes)
    assert (empty["votes"], empty["results"][0]["win_rate"], empty["results"][0]["alpha"]) == (0, None, None)
    answers = {"Ada": "ffffoofn", "Bob": "fffooofo"}
    for name, said in answers.items():
        judge = join(votes, name)
        for pair, letter in enumerate(said):
            truer = {"f": "first", "o": "other", "n": "neither"}[letter]
            votes.vote(judge, Vote(pair, truer, "first", "first"))  # type: ignore[arg-type]
    results = study_results(study, votes)
    subject, caption = results["results"]
    assert (results["judges"], results["votes"], results["first"], subject["other"]) == (2, 16, "a", "b")
    assert (subject["wins"], subject["losses"], subject["cannot_say"]) == (9, 6, 1)
    assert subject["win_rate"] == pytest.approx(9 / 15)
    for name in ("wilson95", "subjects95", "judges95"):
        low, high = subject[name]
        assert 0 <= low <= 9 / 15 <= high <= 1
    # judge by judge: 5 of 7 and 4 of 8
    assert subject["judges95"] == [pytest.approx(0.5), pytest.approx(5 / 7)]
    assert 0 < subject["alpha"] < 1
    assert (caption["win_rate"], caption["alpha"]) == (1.0, None)
    assert caption["wilson95"][0] == pytest.approx(16 / (16 + 1.959964**2), abs=1e-5)
    assert study_results(study, Votes(tmp_path / "study", study)) == results


def test_wilson_against_published_values() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I
    for wins, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson(wins, count) == pytest.approx((low, high), abs=6e-5)
    assert wilson(0, 0) is None


def test_alpha_against_the_published_example() -> None:
    # Krippendorff (2011), section C: four observers, twelve units
    observers = ["123321412...", "123322412 5.3".replace(" ", ""), ".33323422 51.".replace(" ", ""), "12332441251."]
    units = [[int(o[u]) for o in observers if o[u] != "."] for u in range(12)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=6e-4)
    assert krippendorff_alpha(units, "ordinal") == pytest.approx(0.815, abs=6e-4)
    assert krippendorff_alpha(units, "interval") == pytest.approx(0.849, abs=6e-4)
    assert krippendorff_alpha(units, values=range(9)) == pytest.approx(0.743, abs=6e-4)


def test_alpha_at_its_ends() -> None:
    assert krippendorff_alpha([[1, 1], [2, 2]]) == 1
    assert krippendorff_alpha([[1, 2], [2, 1]]) == pytest.approx(-0.5)
    for undefined in ([], [[1], [2]], [[1, 1], [1, 1]]):
        assert krippendorff_alpha(undefined) is None
