"""Training in two processes, with all weights on both or with shards: equal weights, the same as in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bootpig.models.toy.subject_folder import write_folder
from tests.models.tiny import save_clip, save_vit
from tests.stages.train.ranks import Run, train
from tests.stages.train.training_data import curve, save_base


def exports(model: Path) -> dict[str, torch.Tensor]:
    """All weights of an exported model."""
    files = sorted(model.rglob("*.safetensors"))
    return {f"{file.name} {key}": tensor for file in files for key, tensor in load_file(file).items()}


LORA = {"method": "lora", "lora_rank": 4}


def runs(folder: Path) -> tuple[Run, ...]:
    """Each with one rank and with two; only unsharded ones can draw validation subjects."""
    judged = {name: str(folder / name) for name in ("clip", "dino", "subjects")}
    scored = {"evaluate_every": 2, "evaluation": {**judged, "count": 2, "steps": 2, "batch_size": 1}}
    return (
        Run("one", 1, "kept1", scored),
        Run("two", 2, "kept2", scored),
        Run("sharded", 2, "kept3", {"shard": "fsdp"}),
        Run("resumed", 2, "kept3", {"shard": "fsdp"}),  # from the checkpoint of the run before
        Run("lora one", 1, "kept4", LORA),
        Run("lora two", 2, "kept5", LORA),
    )


@pytest.mark.slow
def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    save_base(tmp_path / "base")
    save_clip(tmp_path / "clip")
    save_vit(tmp_path / "dino")
    write_folder(tmp_path / "subjects", 2)
    trained = train(tmp_path, runs(tmp_path))
    for name, (one, *_) in trained.items():
        alone = "lora one" if name.startswith("lora") else "one"
        (expected,) = trained[alone]
        assert all(torch.equal(other[key], tensor) for other in trained[name] for key, tensor in one.items())
        assert one.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(one[key], tensor, rtol=0, atol=1e-5)
        exported = exports(tmp_path / f"{alone}-0/result/model")
        assert exported
        for key, tensor in exports(tmp_path / f"{name}-0/result/model").items():
            torch.testing.assert_close(tensor, exported[key], rtol=0, atol=1e-5)
        for rank in range(1, len(trained[name])):
            assert not list((tmp_path / f"{name}-{rank}/result").iterdir())
    (sharded, _), (resumed, _) = trained["sharded"], trained["resumed"]
    assert all(torch.equal(sharded[key], tensor) for key, tensor in resumed.items())
    scores = [curve(tmp_path / f"{name}-0/result") for name in ("one", "two")]
    assert [line["step"] for line in scores[0]] == [0, 2, 4]
    for line, other in zip(*scores, strict=True):
        assert line == pytest.approx(other, abs=1e-3)
    assert [path.name for path in (tmp_path / "kept2").iterdir()] == ["checkpoint-00002"]
    assert all(".lora_" in key for key in trained["lora one"][0])
    assert not any(".lora_" in key for key in trained["one"][0])
