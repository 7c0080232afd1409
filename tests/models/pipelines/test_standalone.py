"""A saved pipeline loads where this package is not, and draws the same."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bootpig.models.pipelines.export import standalone_source
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pipelines.sd_inpaint import BootPIGInpaintPipeline
from bootpig.models.pipelines.xl import BootPIGXLPipeline
from bootpig.models.pipelines.xl_inpaint import BootPIGXLInpaintPipeline
from tests.models.networks import sd_pipeline, train_a_little

LOAD = """
import sys
import numpy as np, torch
from diffusers import DiffusionPipeline
from PIL import Image
folder, again = sys.argv[1:]
torch.set_num_threads(1)
for source in (folder, again):
    pipeline = DiffusionPipeline.from_pretrained(source, custom_pipeline=source, trust_remote_code=True)
    assert type(pipeline).__name__ == "BootPIGPipeline" and "bootpig" not in sys.modules
    assert pipeline.config.key_scale == 1.1 and pipeline.config.pooling == "argmax"
    references = [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")]
    generator = torch.Generator().manual_seed(3)
    out = pipeline("a photo of a mug", references, num_inference_steps=2, generator=generator, output_type="np").images
    np.save(source + "/out.npy", out)
    if source == folder:
        pipeline.save_pretrained(again)
"""


@pytest.mark.parametrize("kind", [BootPIGPipeline, BootPIGInpaintPipeline, BootPIGXLPipeline, BootPIGXLInpaintPipeline])
def test_every_pipeline_fits_in_one_file(kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = standalone_source(kind)
    imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not [node.lineno for node in imported if "bootpig" in ast.unparse(node)]
    (tmp_path / "alone.py").write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("alone", tmp_path / "alone.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "alone", module)
    spec.loader.exec_module(module)
    alone = getattr(module, kind.__name__)
    assert inspect.signature(alone.__call__) == inspect.signature(kind.__call__)


@pytest.mark.slow
def test_loads_without_this_package(tmp_path: Path) -> None:
    import torch

    torch.set_num_threads(1)  # the last bits of a CPU result depend on it; LOAD has the same
    pipeline = sd_pipeline(tmp_path, key_scale=1.1, pooling="argmax")
    train_a_little(pipeline)
    folder, again = tmp_path / "saved", tmp_path / "again"
    pipeline.save_pretrained(folder)
    references = [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")]
    generator = torch.Generator().manual_seed(3)
    expected = pipeline(
        "a photo of a mug", references, num_inference_steps=2, generator=generator, output_type="np"
    ).images
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HOME": str(tmp_path / "hf")}
    subprocess.run(
        [sys.executable, "-P", "-c", LOAD, str(folder), str(again)],
        cwd=tmp_path,
        env=environment,
        check=True,
        timeout=240,
    )
    for place in (folder, again):
        assert np.array_equal(np.load(place / "out.npy"), expected)
    assert (folder / "pipeline.py").read_text() == (again / "pipeline.py").read_text()
