"""models.toy.check: its computations, table and exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bootpig.models.toy import check
from bootpig.models.toy.clip import judge
from bootpig.models.toy.dino import identity_auc
from bootpig.models.toy.world import KINDS, POSITIONS, SCENES


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["check", *arguments])
    return check.main()


def test_an_unmet_requirement_is_exit_status_1(monkeypatch, capsys, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(3_000_000))
    place = ["--checkpoints", str(tmp_path), "--work", str(tmp_path / "work"), "--json", "--only"]
    assert run(monkeypatch, *place, "size") == 0
    assert json.loads(capsys.readouterr().out) == {"megabytes": 3.0}
    (tmp_path / "weights").write_bytes(bytes(41_000_000))
    assert run(monkeypatch, *place, "size") == 1


def test_a_missing_checkpoint_is_a_missing_figure(monkeypatch, capsys, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    place = ["--checkpoints", str(tmp_path / "none"), "--work", str(tmp_path)]
    assert run(monkeypatch, *place, "--only", "vae", "size") == 1
    shown = capsys.readouterr()
    assert "missing" in shown.out
    assert "vae_psnr_db" in shown.out
    assert "cannot be measured" in shown.err


def test_the_keys_are_those_of_the_project() -> None:
    assert set(check.BARS) == {
        "vae_psnr_db",
        "t2i_kind_accuracy",
        "t2i_scene_accuracy",
        "t2i_position_accuracy",
        "detector_recall_50",
        "sam_mean_iou",
        "clip_kind_accuracy",
        "judge_kind_accuracy",
        "judge_scene_accuracy",
        "judge_colour_accuracy",
        "judge_subject_auc",
        "dino_identity_auc",
        "megabytes",
    }


def test_box_iou() -> None:
    a = np.array([0, 0, 10, 10])
    assert check.box_iou(a, a) == 1
    assert check.box_iou(a, np.array([5, 0, 15, 10])) == pytest.approx(1 / 3)
    assert check.box_iou(a, np.array([20, 20, 30, 30])) == 0


def test_identity_auc_is_1_for_identities_apart_and_a_half_for_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = np.repeat([0, 1], 20)
    own = torch.nn.functional.normalize(torch.randn(40, 1, 16, generator=generator), dim=-1)
    assert identity_auc(own.expand(-1, 3, -1), kinds) == pytest.approx(1)
    noise = torch.nn.functional.normalize(torch.randn(40, 3, 16, generator=generator), dim=-1)
    assert identity_auc(noise, kinds) == pytest.approx(0.5, abs=0.08)


def test_judge_reads_each_axis_off_its_own_captions() -> None:
    kinds, positions, scenes = torch.eye(len(KINDS)), torch.eye(len(POSITIONS)), torch.eye(len(SCENES))
    captions = torch.stack([torch.cat([k, p, s]) for k in kinds for p in positions for s in scenes]) / 3**0.5
    index = torch.tensor([(5 * len(POSITIONS) + 2) * len(SCENES) + 7, 0])
    assert judge(captions[index], captions, "kind").tolist() == [5, 0]
    assert judge(captions[index], captions, "position").tolist() == [2, 0]
    assert judge(captions[index], captions, "scene").tolist() == [7, 0]
