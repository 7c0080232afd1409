"""How much memory a training is said to need, from the committed table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bootpig.stages.engine.memory import Memory
from bootpig.stages.train.config import TrainConfig
from bootpig.stages.train.memory import table, training_memory

GIB = 2**30
DOCS = Path(__file__).parents[3] / "docs/benchmarks.md"


def needed(model: str = "sd21", side: int = 512, **values: object) -> Memory:
    batch = values.pop("batch", 4)
    config = TrainConfig(model=model, **{"global_batch_size": 64, "per_device_batch_size": batch, **values})
    return training_memory(config, side**2)[0]


def test_the_goals_hold() -> None:
    """SD 2.1 on 12 and 24 GB, SDXL on 24 GB, with what PyTorch's allocator and CUDA take themselves."""
    for size, memory in (
        (12, needed(method="lora")),
        (24, needed(gradient_checkpointing=True)),
        (24, needed("sdxl", 1024, batch=1, method="lora", gradient_checkpointing=True)),
    ):
        assert memory.basis == "computed" and memory.bytes is not None
        assert memory.bytes * 1.05 + GIB <= size * GIB


def test_what_is_not_in_the_table_is_scaled_or_unknown(tmp_path: Path) -> None:
    one = needed(method="lora")
    held = one.bytes - (
        needed(method="lora", batch=8).bytes - one.bytes
    )  # the activations are proportional to the batch
    larger = needed(method="lora", side=768)
    assert larger.basis == "scaled"
    assert larger.bytes - held == pytest.approx(2.25 * (one.bytes - held), rel=0.01)
    assert needed(method="lora", lora_rank=64).basis == "scaled"
    assert needed(references_per_sample=(1, 4)).bytes > needed().bytes
    average, eight = (
        needed(ema_decay=0.99).bytes - needed().bytes,
        needed().bytes - needed(optimizer="adamw_8bit").bytes,
    )
    assert average == table()["SD 2.1"]["methods"]["full"]["trained"]
    assert needed(num_processes=2).bytes - needed().bytes == average, "DDP's copy of the gradients"
    assert eight / average == pytest.approx(1.5, rel=0.01), "moments of 2 bytes in place of 8"
    for unknown in (
        {"mixed_precision": "no"},
        {"trainable": {"base": "all"}},
        {"shard": "fsdp"},
        {"method": "lora", "lora_targets": ["ff.net.2"]},
    ):
        config = TrainConfig(model="sd21", **unknown)
        memory, line = training_memory(config, 512**2)
        assert memory.bytes is None and memory.fits() == [] and str(memory) == "unknown"
        assert line.startswith("train: memory is not computed for ")


def test_a_local_base_is_recognised_by_its_unet(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "unet").mkdir()
    unet = {**table()["SD 2.1"]["unet"], "transformer_layers_per_block": 1, "sample_size": 96}
    (tmp_path / "unet/config.json").write_text(json.dumps(unet))
    assert needed(str(tmp_path)).bytes == needed().bytes
    (tmp_path / "unet/config.json").write_text(json.dumps({**unet, "layers_per_block": 3}))
    assert needed(str(tmp_path)).basis == "unknown"
    (tmp_path / "unet/config.json").write_text("{")
    assert needed(str(tmp_path)).basis == "unknown"


def test_a_card_needs_more_than_the_tensors() -> None:
    assert Memory(14.0 * GIB, "computed").fits() == [16, 24, 48, 80]
    assert Memory(15.0 * GIB, "computed").fits() == [24, 48, 80]
    assert Memory(90.0 * GIB, "computed").fits() == []


def test_the_docs_have_the_table() -> None:
    from benchmarks.memory import markdown

    assert "\n".join(markdown(table())) in DOCS.read_text()
