"""The folders of DreamBooth and DreamBench++ in their published forms, with words of our own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from bootpig.stages.engine.contract import InputError
from bootpig.stages.evaluate.prompts import with_phrase
from bootpig.stages.evaluate.subjects import Subject, benchmark_subjects, unusable_pictures

TABLE = """Classes

subject_name,class
dog3,dog
grey_owl,cuckoo clock
old_lamp,lamp
"""

OBJECTS = """
Prompts

Object Prompts

prompt_list = [
'a {0} {1} under a bridge'.format(unique_token, class_token),
'a green {0} {1}'.format(unique_token, class_token),
"a {0} {1} at the baker's".format(unique_token, class_token)
]
"""

LIVING = """
Live Subject Prompts

prompt_list = [
'a {0} {1} under a bridge'.format(unique_token, class_token),
'a {0} {1} with a paper crown'.format(unique_token, class_token),
]
"""

WHOLE = TABLE + OBJECTS + LIVING


def picture(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), colour).save(path)


def dreambooth(folder: Path, text: str | bytes = WHOLE) -> Path:
    folder.mkdir()
    (folder / "prompts_and_classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "references_and_licenses.txt").write_text("where the pictures are from\n")
    for name in ("dog3", "grey_owl", "old_lamp"):
        for number in range(3):
            picture(folder / name / f"{number:02d}.jpg")
    return folder


def read(folder: Path, references: int = 1) -> dict[str, Subject]:
    return {each.name: each for each in benchmark_subjects(folder, "dreambooth", references)}


def test_classes_kinds_and_prompts_are_those_of_the_file(tmp_path: Path) -> None:
    found = read(dreambooth(tmp_path / "dataset"))
    assert {name: (each.object, each.kind) for name, each in found.items()} == {
        "dog3": ("dog", "living"),
        "grey_owl": ("cuckoo clock", "object"),
        "old_lamp": ("lamp", "object"),
    }
    assert found["dog3"].prompts == ("a dog under a bridge", "a dog with a paper crown")
    assert found["old_lamp"].prompts == ("a lamp under a bridge", "a green lamp", "a lamp at the baker's")
    assert found["old_lamp"].templates[1] == "a green {object}"
    assert [path.name for path in found["dog3"].references] == ["00.jpg"]
    assert [path.name for path in found["dog3"].real] == ["01.jpg", "02.jpg"]


@pytest.mark.parametrize(
    "text",
    [
        WHOLE.replace("\n", "\r\n"),
        "\ufeff" + WHOLE,
        WHOLE.replace("dog3,dog", "dog3 , dog,").replace("lamp\n", "lamp,\n"),
        WHOLE.replace(".format(unique_token, class_token)", ""),
        WHOLE.replace("{0} {1}", "{1} {0}").replace("(unique_token, class_token)", "(class_token, unique_token)"),
        WHOLE.replace("{0} {1}", "{} {}"),
        WHOLE.replace("{0} {1}", "{unique_token} {class_token}"),
        WHOLE.replace("),\n", ")\n").replace("'a ", "- 'a "),
        WHOLE.replace("'a ", "    'a ").replace("\n", "\n\n"),
    ],
    ids=["CRLF", "BOM", "commas", "no format", "swapped", "unnumbered", "named", "no commas", "spaces"],
)
def test_other_spellings_of_the_file_mean_the_same(text: str, tmp_path: Path) -> None:
    found, whole = read(dreambooth(tmp_path / "a", text)), read(dreambooth(tmp_path / "b"))
    assert [(each.object, each.prompts) for each in found.values()] == [
        (each.object, each.prompts) for each in whole.values()
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TABLE, "has no prompts; restore the published file"),
        (OBJECTS, "has no line <subject>,<class>"),
        (TABLE + OBJECTS, "has no prompts for living subjects such as 'dog3'"),
        (WHOLE.replace("dog3,dog\n", ""), "'dog3' is not in the classes"),
        (WHOLE.replace("dog3,dog", "dog3,dog\ndog3,cat"), "line 5 → 'dog3' has another class"),
        (WHOLE.replace("dog3,dog", "dog3,dog\nfox,fox"), "'fox' has a class, but"),
        (WHOLE.replace("dog3,dog", "Dog3,dog"), "rename 'dog3'"),
        (WHOLE.replace("a green {0} {1}", "a green thing"), "has no place for the class"),
        (WHOLE.replace("{1} under", "{2} under"), "cannot be filled in"),
        (WHOLE.replace("a green {0} {1}", "a green {0 {1}"), "cannot be filled in"),
        (WHOLE.replace("{1}'.format", "{1}.format"), "is not a prompt in quotes"),
        (b"\xff\xfe\xfa", "dataset"),
        (b"", "has no line"),
    ],
)
def test_a_damaged_file_is_one_line(text: str | bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read(dreambooth(tmp_path / "dataset", text))
    assert str(raised.value).startswith("evaluate.subjects: ") and said in str(raised.value)
    assert "\n" not in str(raised.value) or "dog3" in str(raised.value)


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    folder = dreambooth(tmp_path / "dataset")
    (folder / ".git").mkdir()
    (folder / "__MACOSX" / "dog3").mkdir(parents=True)
    for name in (".DS_Store", "Thumbs.db", "._00.jpg"):
        (folder / "dog3" / name).write_bytes(b"not a picture")
    assert len(read(folder)["dog3"].real) == 2
    shutil.rmtree(folder / "old_lamp")
    (folder / "old_lamp" / "old_lamp").mkdir(parents=True)
    picture(folder / "old_lamp" / "old_lamp" / "00.jpg")
    for path in (folder / "grey_owl").iterdir():
        path.unlink()
    with pytest.raises(InputError) as raised:
        read(folder)
    first, second = str(raised.value).splitlines()
    assert "grey_owl" in first and "has no pictures; restore them" in first
    assert "old_lamp/old_lamp' there" in second
    with pytest.raises(InputError, match=f"give '{folder}'"):
        read(tmp_path)
    (folder / "prompts_and_classes.txt").unlink()
    with pytest.raises(InputError, match="give the folder `dataset`"):
        read(folder)


def test_pictures_of_any_mode_can_be_used_and_broken_ones_are_named(tmp_path: Path) -> None:
    folder = dreambooth(tmp_path / "dataset")
    Image.new("L", (16, 12)).save(folder / "dog3" / "00.jpg")
    Image.new("CMYK", (16, 12)).save(folder / "dog3" / "01.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (16, 12)).save(folder / "dog3" / "02.jpg", exif=turned)
    assert unusable_pictures(list(read(folder).values())) == []
    data = (folder / "old_lamp" / "01.jpg").read_bytes()
    (folder / "old_lamp" / "01.jpg").write_bytes(data[: len(data) // 2])
    (line,) = unusable_pictures(list(read(folder).values()))
    assert "old_lamp/01.jpg" in line


def plus(folder: Path) -> Path:
    for key, lines in {
        "live_subject/animal/00": "kitten\nA kitten on a shelf\nTwo children and a small Kitten at noon\n",
        "object/00": "tea pot\nAn old photo of a tea pot\nSomething that does not say it\n",
        "style/03": "linocut style\nA boat, linocut style\n",
    }.items():
        picture(folder / "images" / f"{key}.jpg")
        (folder / "captions" / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / "captions" / f"{key}.txt").write_bytes(lines.replace("\n", "\r\n").encode("utf-8-sig"))
    return folder


def test_dreambench_plus(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / ".DS_Store").write_bytes(b"?")
    found = {each.name: each for each in benchmark_subjects(plus(tmp_path), "dreambench++", "all")}
    kinds = {name: (each.object, each.kind) for name, each in found.items()}
    assert kinds == {
        "live_subject_animal_00_kitten": ("kitten", "living"),
        "object_00_tea_pot": ("tea pot", "object"),
        "style_03_linocut_style": ("linocut style", "style"),
    }
    kitten, pot = found["live_subject_animal_00_kitten"], found["object_00_tea_pot"]
    assert kitten.prompts == ("A kitten on a shelf", "Two children and a small Kitten at noon")
    assert kitten.templates == ("A {object} on a shelf", "Two children and a small {object} at noon")
    assert pot.templates[1] == pot.prompts[1]
    assert kitten.references == kitten.real and len(kitten.real) == 1


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda f: (f / "captions" / "object" / "00.txt").unlink(), "has no text file object/00.txt"),
        (lambda f: (f / "images" / "object" / "00.jpg").unlink(), "has no picture object/00"),
        (lambda f: picture(f / "images" / "object" / "00.png"), "has the name of '00.jpg'"),
        (lambda f: (f / "captions" / "object" / "00.txt").write_text("tea pot\n"), "has 1 lines"),
        (lambda f: shutil.rmtree(f / "captions"), "has no folder captions"),
        (lambda f: shutil.rmtree(f / "images"), "has no folder images"),
        (lambda f: [p.unlink() for p in (f / "images").rglob("*.jpg")], "has no pictures"),
    ],
)
def test_dreambench_plus_that_is_not_whole(break_it, said: str, tmp_path: Path) -> None:
    folder = plus(tmp_path)
    break_it(folder)
    with pytest.raises(InputError) as raised:
        benchmark_subjects(folder, "dreambench++", 1)
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a {object} at the sea", "a sks dog at the sea"),
        ("A {object} at the sea", "A sks dog at the sea"),
        ("the {object}", "a sks dog"),
        ("a red {object}", "a red sks dog"),
        ("{object} at the sea", "a sks dog at the sea"),
        ("a photo of {object}", "a photo of a sks dog"),
        ("a photo of a {object}, at night", "a photo of a sks dog, at night"),
        ("a {object} and the shadow of a {object}", "a sks dog and the shadow of a sks dog"),
        ("night, {object}", "night, a sks dog"),
        ("a sea at night", "a sks dog, a sea at night"),
    ],
)
def test_a_phrase_takes_the_place_of_class_and_article(template: str, expected: str) -> None:
    assert with_phrase(template, "a sks dog") == expected
    assert with_phrase("a {object} at sea", "<cat>") == "<cat> at sea"
