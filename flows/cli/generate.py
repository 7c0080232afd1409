"""Implements `bootpig generate` and `bootpig evaluate` on a trained model."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootpig.flows.runs.records import read_config, read_run
from bootpig.models.pipelines.card import model_card
from bootpig.models.pretrained.inspection import pipeline_problems, trained_problems
from bootpig.models.pretrained.source import BASE, PIPELINE, ModelSource, loading
from bootpig.models.pretrained.sources import resolve
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError, Progress
from bootpig.stages.engine.survey import make_stage
from bootpig.stages.picture_files.masks import read_mask
from bootpig.stages.picture_files.reader import on_white, read_picture, reference_problem
from bootpig.stages.sampling import Drawn, Sampling, Seeds, draw_pictures, fix_of_not_finite
from bootpig.stages.segment.stage import Segment, SegmentConfig
from bootpig.storage.jsonio import parse_json
from bootpig.storage.parts import Parts
from bootpig.storage.root import Root


@dataclass(frozen=True)
class Prompts:
    """What to draw: `count` pictures of each prompt."""

    texts: list[str]
    negative: str | None = None
    count: int = 1
    seed: int = 0
    """Seed of the references' noise and of the first picture. Picture i has the seed plus i."""


@dataclass(frozen=True)
class InpaintFiles:
    """A picture to paint the subject into."""

    image: Path
    mask: Path
    """A mask of the image's size. White is repainted."""
    strength: float = 1.0
    padding_mask_crop: int | None = None


@dataclass(frozen=True)
class Written:
    """A picture that was drawn."""

    file: Path
    finite: bool
    """False: it holds NaN or infinity, and no file was written."""
    known_psnr_db: float | None
    """See `bootpig.stages.sampling.Drawn`."""


def run_config(model: str, root: str) -> PipelineConfig | None:
    """The configuration of the run that trained a model. None if the model is given as a folder."""
    if Path(model).exists():
        return None
    store = Root(root)
    return read_config(store, read_run(store, model))


def generate(
    model: Path,
    references: list[Path],
    prompts: Prompts,
    outputs: Path,
    sampling: Sampling,
    progress: Progress,
    *,
    inpaint: InpaintFiles | None = None,
    cutter: tuple[SegmentConfig, str] | None = None,
    sheet: Path | None = None,
    dtype: str | None = None,
) -> list[Written]:
    """Generate pictures of the references' subject for each prompt. References are prepared once for all prompts.

    Args:
        model: folder of the trained model.
        references: pictures of one subject, RGB on white or RGBA cut out. If empty: the trained base model alone.
        prompts: what to draw.
        outputs: a .png file. With several pictures, -0, -1, … is added before the suffix, prompt by prompt.
        sampling: the sampling settings.
        progress: progress callback.
        inpaint: a picture to paint into, instead of generating a whole picture.
        cutter: the segment stage's settings and the object phrase, to cut the subject out of plain photos first.
        sheet: a .png file with all pictures next to their inputs: before | mask | reference | after.
        dtype: float32, float16 or bfloat16. None: float16 on a GPU, else float32.

    Returns:
        The pictures, in order. A picture depends only on its seed, prompt, references and number, not on the
        batch.

    Raises:
        InputError, ModelError: a picture, the model or its base cannot be used.
        FatalError: memory runs out with a single picture.
    """
    for option, path in (("out", outputs), ("sheet", sheet)):
        if path is not None and path.suffix.lower() != ".png":
            raise InputError(f"--{option}: {str(path)!r} → give a name that ends in .png")
    pictures = [_reference(path) for path in references]
    painted = {} if inpaint is None else _inpaint_inputs(inpaint)
    info = model_info(model)
    base = resolve("model.base", str(info.get("base") or ""), info.get("revision"), PIPELINE, BASE)
    problems = trained_problems("model", model, base) + pipeline_problems(base)
    if cutter is not None:
        problems += Segment(cutter[0], seed=0).check_models()
    if problems:
        raise InputError("\n".join(problems))
    if cutter is not None:
        pictures = _cut_out(references, pictures, *cutter)

    pipeline = _pipeline(model, base, dtype)
    prepared = None
    if pictures:
        try:
            prepared = pipeline.prepare_references(pictures)
        except ValueError as error:
            raise InputError(f"--ref: {error}") from None
    if inpaint is not None:
        from diffusers.utils import logging as diffusers_logging

        from bootpig.models.pipelines.sd_inpaint import BootPIGInpaintPipeline
        from bootpig.models.pipelines.xl_inpaint import BootPIGXLInpaintPipeline

        large = "text_encoder_2" in pipeline.components
        kind = BootPIGXLInpaintPipeline if large else BootPIGInpaintPipeline
        diffusers_logging.set_verbosity_error()  # it warns of a cast that is none
        pipeline = kind.from_pipe(pipeline, dtype=pipeline.unet.dtype)
    pipeline.set_progress_bar_config(disable=True)

    rows = [text for text in prompts.texts for _ in range(prompts.count)]
    files = [outputs.with_stem(f"{outputs.stem}-{number}") if len(rows) > 1 else outputs for number in range(len(rows))]
    outputs.parent.mkdir(parents=True, exist_ok=True)

    def inputs(batch: Sequence[int]) -> dict[str, Any]:
        return {
            "prompt": [rows[number] for number in batch],
            "reference_images": prepared,
            "negative_prompt": None if prompts.negative is None else [prompts.negative] * len(batch),
            **painted,
        }

    # Each picture has first noise of its own; the references' noise depends on the seed alone, so all prompts share it.
    seeds = [Seeds(prompts.seed + number, prompts.seed) for number in range(len(rows))]
    drawn: list[Drawn] = []
    try:
        for batch in draw_pictures(pipeline, seeds, inputs, sampling, setting="--batch-size", progress=progress):
            for picture in batch:
                if picture.image is not None:
                    picture.image.save(files[len(drawn)])
                drawn.append(picture)
    except ValueError as error:
        raise InputError(f"generate: {error}") from None
    found = [(text, picture.image) for text, picture in zip(rows, drawn, strict=True) if picture.image is not None]
    if sheet is not None and found:
        _sheet([text for text, _ in found], [image for _, image in found], pictures, painted).save(sheet)
    written = [Written(f, p.image is not None, p.known_psnr_db) for f, p in zip(files, drawn, strict=True)]
    if bad := [each.file.name for each in written if not each.finite]:
        names = ", ".join(bad[:3]) + (", …" if len(bad) > 3 else "")
        fix = fix_of_not_finite(pipeline.unet.dtype, "--dtype")
        print(
            f"generate: {len(bad)} of {len(rows)} pictures hold NaN or infinity and were not written ({names}); {fix}",
            file=sys.stderr,
        )
    return written


def _sheet(prompts: list[str], images: list[Any], references: list[Any], painted: dict[str, Any]) -> Any:
    """A sheet with one row per picture: before | mask | reference | after, as far as these exist."""
    from bootpig.models.pipelines.references import prepare_picture
    from bootpig.stages.evaluate.contact_sheet import SheetRow, contact_sheet

    fixed = {}
    if painted:
        fixed = {"before": painted["image"], "mask": painted["mask_image"].convert("RGB")}
    if references:
        fixed["reference"] = prepare_picture(references[0], images[0].width)
    rows = [SheetRow(prompt, [*fixed.values(), image]) for prompt, image in zip(prompts, images, strict=True)]
    return contact_sheet((*fixed, "after"), rows)


def _pipeline(model: Path, base: ModelSource, dtype: str | None) -> Any:
    """The pipeline with the trained weights, on a GPU if there is one. By default in float16 there, else in float32."""
    from bootpig.models.devices import torch_device, torch_dtype
    from bootpig.models.pipelines.bases import load_base
    from bootpig.models.pretrained.finite import check_pipeline, check_trained

    device = torch_device("device", "auto")
    name = dtype or ("float32" if device.type == "cpu" else "float16")
    pipeline: Any = load_base(base, torch_dtype(name)).to(device)
    check_pipeline(base, pipeline)
    with loading("model", str(model)):
        pipeline.load_bootpig(model)
    check_trained("model", model, pipeline)
    return pipeline


def _reference(path: Path) -> Any:
    picture = read_picture(path, "--ref")
    if problem := reference_problem(picture):
        raise InputError(f"--ref: {str(path)!r} → {problem}")
    return picture


def _inpaint_inputs(files: InpaintFiles) -> dict[str, Any]:
    """The inpainting pipeline's arguments."""
    image = read_picture(files.image, "--image")
    said: list[str] = []
    mask = read_mask(files.mask, "--mask", said.append)
    if image.size != mask.size:
        sizes = f"{mask.width}x{mask.height} pixels for an image of {image.width}x{image.height}"
        raise InputError(f"--mask: {str(files.mask)!r} → {sizes}; give one of the image's size")
    print(*said, sep="\n", file=sys.stderr)
    return {
        "image": on_white(image),
        "mask_image": mask,
        "strength": files.strength,
        "padding_mask_crop": files.padding_mask_crop,
    }


def _cut_out(paths: list[Path], pictures: list[Any], config: SegmentConfig, phrase: str) -> list[Any]:
    """Cut out the plain photos among `pictures`. The others are unchanged."""
    from bootpig.stages.segment.cut_out import cut_out

    plain = [place for place, picture in enumerate(pictures) if picture.mode == "RGB"]
    cut = cut_out([pictures[place] for place in plain], [str(paths[place]) for place in plain], phrase, config)
    found = dict(zip(plain, cut, strict=True))
    return [found.get(place, picture) for place, picture in enumerate(pictures)]


def model_info(model: Path) -> dict[str, Any]:
    """The content of a trained model's `bootpig.json`. Raises InputError if it is unreadable."""
    try:
        info: dict[str, Any] = parse_json((model / "bootpig.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model: {str(model / 'bootpig.json')!r} → cannot be read ({error})") from None
    if not isinstance(info, dict) or not isinstance(info.get("base"), str) or not info["base"]:
        raise InputError(f"model: {str(model / 'bootpig.json')!r} → names no base model; train it again")
    return info


def evaluate(model: Path, config: PipelineConfig, outputs: Path, progress: Progress) -> dict[str, Any]:
    """Evaluate a trained model with the `evaluate` section of a configuration, without a store. Writes the metrics, the
    contact sheet and a model card with the metrics to the folder `outputs`.

    Returns:
        The metrics.

    Raises:
        InputError, ModelError: the model, the subjects or an embedder cannot be used.
    """
    if outputs.exists() and (not outputs.is_dir() or any(outputs.iterdir())):
        raise InputError(f"--out: {str(outputs)!r} → is there already; give a new folder")
    from bootpig.stages.evaluate.stage import Evaluate

    stage = make_stage(config, "evaluate")
    assert isinstance(stage, Evaluate)
    stage.check_trained(model)
    outputs = outputs.absolute()
    outputs.parent.mkdir(parents=True, exist_ok=True)
    # Pictures are written as they are drawn: the folder takes its name when it is whole.
    with tempfile.TemporaryDirectory(prefix=f".{outputs.name}-", dir=outputs.parent) as scratch:
        result = Path(scratch, "result")
        result.mkdir()
        # a judge's answers, which may be paid for, are kept where a run keeps them
        parts = None if config.evaluate.judge is None else Parts(Root(config.root), "evaluate", "")
        metrics = stage.measure(model, result, progress, parts=parts)
        card = model_card({**model_info(model), "metrics": metrics})
        (result / "model_card.md").write_text(card, encoding="utf-8")
        result.replace(outputs)
    return metrics
