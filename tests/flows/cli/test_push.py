"""`bootpig push` to a hub on loopback: what goes up, what is refused, and going on after faults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from PIL import Image

from bootpig.flows.cli.main import main
from bootpig.flows.runs.records import StageRecord, new_run, promote
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pretrained.source import PROJECT
from bootpig.stages.config import PipelineConfig
from bootpig.storage.folders import publish_folder
from bootpig.storage.root import Root
from tests.servers.hub import Fault, Stored, UploadHub, reach, upload_hub

BASE = PROJECT / "models/toy/checkpoints/stable-diffusion"
SECRET = "sk-this-must-not-be-seen"
METRICS = {"subjects": 2, "images": 4, "methods": {"bootpig": {"dino": {"mean": 0.612}}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "model"
    pipeline = BootPIGPipeline.from_pretrained(BASE, safety_checker=None, requires_safety_checker=False)
    info = {"base": str(BASE), "recipe": {"init_from": "/home/someone/models/first", "note": f"with {SECRET}"}}
    pipeline.save_bootpig(folder, info, dtype=torch.float16)
    (folder / "notes.txt").write_text("only mine")
    (folder / ".env").write_text("mine too")
    return folder


@pytest.fixture
def run(model: Path, config: PipelineConfig) -> list[str]:
    """A run with a trained and evaluated model: the arguments that name it."""
    root, record = Root(config.root), new_run(Root(config.root), config)
    publish_folder(root, "train/aa/result", model.parent)
    evaluated = Path(config.root).parent / "evaluated"
    evaluated.mkdir()
    (evaluated / "metrics.json").write_text(json.dumps(METRICS))
    Image.new("RGB", (8, 8)).save(evaluated / "contact_sheet.png")
    publish_folder(root, "evaluate/bb/result", evaluated)
    record.stages |= {"train": StageRecord(fingerprint="aa"), "evaluate": StageRecord(fingerprint="bb")}
    record.state = "done"
    record.save(root)
    promote(root, record)
    return ["latest", "--root", config.root]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    with upload_hub() as running:
        reach(running, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_writes_all_of_it")
        monkeypatch.setenv("BOOTPIG_LLM_KEY", SECRET)
        yield running


def push(*arguments: str, to: str = "hf://me/teapots") -> int:
    return main(["push", *arguments, "--to", to])


def test_what_goes_up(run: list[str], server: UploadHub, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(*run, "--private") == 0
    assert capsys.readouterr().out.strip() == f"{server.url}/me/teapots"
    stored = server.repositories["models/me/teapots"]
    assert stored.private and len(stored.commits) == 1
    weights = {file.relative_to(model).as_posix() for file in model.rglob("*.safetensors")}
    others = {".gitattributes", "README.md", "bootpig.json", "reference_unet/config.json", "samples/contact_sheet.png"}
    assert set(stored.files) == weights | others and len(weights) == 2
    for name in weights:
        assert stored.files[name] == (model / name).read_bytes()
    texts = b"".join(data for name, data in stored.files.items() if not name.endswith((".safetensors", ".png")))
    for private in (str(PROJECT), "/home/someone", SECRET, "hf_writes"):
        assert private.encode() not in texts
    info = json.loads(stored.files["bootpig.json"])
    assert (info["base"], info["recipe"]["init_from"]) == ("stable-diffusion", "first")
    card = stored.files["README.md"].decode()
    assert "](samples/contact_sheet.png)" in card and "0.612" in card and 'snapshot_download("me/teapots")' in card
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "apache-2.0"
    server.sent()
    assert push(*run) == 0
    assert server.sent() == [], "all of it is there"


def test_the_folder_of_a_model(model: Path, server: UploadHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(str(model)) == 0
    assert "without evaluate's pictures" in capsys.readouterr().err
    stored = server.repositories["models/me/teapots"]
    assert "samples/contact_sheet.png" not in stored.files and not stored.private


@pytest.mark.parametrize(
    ("where", "how"),
    [("PUT /lfs", 503), ("PUT /lfs", "cut"), ("preupload", 429)],
    ids=str,
)
def test_faults_that_pass(run: list[str], server: UploadHub, where: str, how: int | str) -> None:
    server.faults.append(Fault(where, how))
    assert push(*run) == 0
    assert server.faults[0].times == 0 and "bootpig.json" in server.repositories["models/me/teapots"].files


@pytest.mark.parametrize("how", [500, "lost"])
def test_going_on_after_a_fault_that_stays(
    run: list[str], server: UploadHub, how: int | str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults.append(Fault("/commit/", how, 100))
    assert push(*run) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("--to: 'hf://me/teapots' → ") and said.endswith("run again to go on, what was sent is kept")
    server.faults.clear()
    server.sent()
    assert push(*run) == 0
    assert not any(word.startswith("PUT") for word in server.sent()), "the weights are there"
    assert "bootpig.json" in server.repositories["models/me/teapots"].files


def other_weights(model: Path) -> dict[str, bytes]:
    files = {file.relative_to(model).as_posix(): file.read_bytes() for file in model.rglob("*") if file.is_file()}
    return files | {"rsa.safetensors": files["rsa.safetensors"][:-1] + b"\x7f"}


def test_refused_before_anything_is_sent(
    run: list[str],
    model: Path,
    server: UploadHub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert push(*run, to="hf://me/public") == 0
    server.repositories |= {
        "models/me/other": Stored(files=other_weights(model)),
        "models/me/readme": Stored(files={"README.md": b"mine"}),
        "models/you/theirs": Stored(),
    }
    before = {name: dict(stored.files) for name, stored in server.repositories.items()}
    server.sent()
    capsys.readouterr()

    def refused(word: str, *arguments: str, to: str = "hf://me/new") -> None:
        assert push(*(arguments or run), to=to) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1 and word in said and "hf_" not in said, said
        assert {name: stored.files for name, stored in server.repositories.items()} == before
        assert [word for word in server.sent() if "/api/repos/" not in word] == []

    refused("does not hold this model", to="hf://me/other")
    refused("is not empty", to="hf://me/readme")
    refused("may not write there", to="hf://you/theirs")
    refused("may not write there", to="hf://you/new")
    refused("--private: ", *run, "--private", to="hf://me/public")
    for url in ("me/new", "hf://new", "hf://datasets/me/new", "hf://me/new/folder", "hf://me/a b", "s3://me/new"):
        refused("write hf://owner/name", to=url)
    refused("run: 'gone'", "gone", "--root", str(tmp_path))
    refused("bootpig.json", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_only_ever_reads")
    refused("may only read")
    monkeypatch.setenv("HF_TOKEN", "hf_unknown_to_all")
    refused("does not accept the token")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    refused("needs a login")
