"""The wheel works without the repository: built, installed into an empty folder, and used from another one."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the installed wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    # from a copy: a build leaves folders behind
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    for name in tracked.split("\0"):
        if name.startswith(
            ("bootpig", "flows", "models", "stages", "storage", "configs", "pyproject", "README", "LICENSE")
        ):
            copy = folder / "source" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if (PROJECT / name).is_symlink():
                copy.symlink_to(os.readlink(PROJECT / name))
            else:
                copy.write_bytes((PROJECT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder / "dist"), str(folder / "source")]
    subprocess.run(build, check=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"bootpig"}, "nothing else in site-packages"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def bootpig(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {"PYTHONPATH": str(site), "PREFECT_HOME": str(folder.parent / "prefect")}
    command = [sys.executable, "-m", "bootpig", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_run_by_name_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    where = "import bootpig, sys; sys.exit(0 if bootpig.__file__.startswith(sys.argv[1]) else 1)"
    environment = os.environ | {"PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-c", where, str(site)], cwd=tmp_path, env=environment, check=True)
    made = bootpig(site, tmp_path / "empty", "run", "toy", "--until", "synthesize", "--set", "caption.count=100")
    assert made.returncode == 0, made.stderr
    assert len(list((tmp_path / "empty" / "data" / "synthesize").glob("*/part-*.tar"))) == 1
    again = bootpig(site, tmp_path / "empty", "run", "toy", "--until", "synthesize", "--set", "caption.count=100")
    assert "1 cached" in again.stdout
    report = next((tmp_path / "empty" / "data" / "runs").glob("*/report.html"))
    assert "toy" in report.read_text()


def test_every_shipped_thing_is_found(site: Path, tmp_path: Path) -> None:
    planned = bootpig(site, tmp_path / "empty", "plan", "toy")
    assert planned.returncode == 0 and "missing:" not in planned.stdout, planned.stdout + planned.stderr
    status = bootpig(site, tmp_path / "empty", "status", "toy", "--json")
    here = subprocess.run(
        [sys.executable, "-m", "bootpig", "status", str(PROJECT / "configs" / "toy.yaml"), "--json"],
        cwd=tmp_path / "empty", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert status.stdout == here.stdout, "the same fingerprints as in the repository"


def test_init_writes_a_copy_and_never_overwrites(site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    assert bootpig(site, folder, "init", "toy").stdout == "toy.yaml\n"
    assert (folder / "toy.yaml").read_text() == (PROJECT / "configs" / "toy.yaml").read_text()
    second = bootpig(site, folder, "init", "toy")
    assert second.returncode == 2 and second.stderr == "--out: 'toy.yaml' → already exists; choose another name\n"
    assert bootpig(site, folder, "status", "toy.yaml").returncode == 0
    wrong = bootpig(site, folder, "init", "toyy")
    assert wrong.returncode == 2 and "choose from flux2-klein" in wrong.stderr
    assert "sd21" in bootpig(site, folder, "init").stdout
    missing = bootpig(site, folder, "plan", "toyy")
    assert missing.returncode == 2 and "did you mean the shipped configuration 'toy'?" in missing.stderr
