"""`bootpig generate` and `bootpig evaluate`: check their options and run them."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from bootpig.flows.cli import display
from bootpig.flows.environment import check_scratch
from bootpig.flows.loading import load_config
from bootpig.stages.caption.phrases import object_phrase
from bootpig.stages.engine.contract import FatalError, InputError
from bootpig.stages.text_files import read_lines


def generate(asked: argparse.Namespace) -> int:
    from bootpig.flows.cli.generate import InpaintFiles, Prompts, generate, run_config
    from bootpig.flows.runs.trained import model_folder
    from bootpig.stages.sampling import Sampling

    bounds = {"count": 1000, "batch-size": 1000, "steps": 1000, "reference-refresh-steps": 1000, "seed": 2**62}
    for option, high in bounds.items():
        value = getattr(asked, option.replace("-", "_"))
        if value is not None and not (option != "seed") <= value <= high:
            raise InputError(f"--{option}: {value} → must be from {int(option != 'seed')} to {high}")
    if (asked.image is None) != (asked.mask is None):
        raise InputError("--image and --mask: → inpainting needs both; give both or neither")
    if asked.image is None and (asked.strength != 1.0 or asked.padding_mask_crop is not None):
        raise InputError("--strength and --padding-mask-crop: → have no effect without --image and --mask; remove them")
    if not 0 < asked.strength <= 1:
        raise InputError(f"--strength: {asked.strength:g} → must be above 0 and at most 1")
    if asked.padding_mask_crop is not None and asked.padding_mask_crop < 0:
        raise InputError(f"--padding-mask-crop: {asked.padding_mask_crop} → must be 0 pixels or more")
    prompts = _prompts(asked.prompt, asked.prompts)
    for option, path in (("out", asked.out), ("sheet", asked.sheet)):
        if path is not None:
            check_writable(f"--{option}", Path(path))
    config = load_config(asked.config) if asked.config else run_config(asked.model, asked.root)
    # the settings with which the run evaluated its model suit it better than the paper's
    chosen: dict[str, Any] = {} if config is None else config.evaluate.model_dump()
    names = ("steps", "guidance_scale", "reference_guidance_scale")
    chosen |= {name: value for name in names if (value := getattr(asked, name)) is not None}
    sampling = Sampling(
        **{name: chosen[name] for name in names if name in chosen},
        reference_refresh_steps=asked.reference_refresh_steps,
        batch_size=asked.batch_size,
    )
    cutter = None
    if asked.cut_out:
        if config is None:
            raise InputError("--cut-out: → needs the segment stage's models; give --config, or a run id as the model")
        phrase = asked.object or object_phrase(prompts[0])
        if phrase is None:
            raise InputError(f"--object: missing → name the subject, because {prompts[0]!r} does not")
        cutter = (config.segment, phrase)
    inpaint = None
    if asked.image is not None:
        inpaint = InpaintFiles(Path(asked.image), Path(asked.mask), asked.strength, asked.padding_mask_crop)
    references = [Path(path) for path in asked.ref]
    sheet = Path(asked.sheet) if asked.sheet else None
    with _scratch() as scratch, display.shown_on(Console(stderr=True)) as screen:
        folder = model_folder(asked.model, asked.root, scratch)
        with screen.stage("generate", sampling.steps * asked.count * len(prompts)) as bar:
            try:
                written = generate(
                    folder,
                    references,
                    Prompts(prompts, asked.negative_prompt, asked.count, asked.seed),
                    Path(asked.out),
                    sampling,
                    bar.result(),
                    inpaint=inpaint,
                    cutter=cutter,
                    sheet=sheet,
                    dtype=asked.dtype,
                )
            except FatalError as error:
                print(f"generate: {error}", file=sys.stderr)
                return 1
    for picture in written:
        if not picture.finite:
            continue
        print(picture.file)
        if picture.known_psnr_db is not None:
            print(f"{picture.file}: known region {picture.known_psnr_db:.1f} dB before pasting", file=sys.stderr)
    return int(not all(picture.finite for picture in written))


def _prompts(given: list[str], file: str | None) -> list[str]:
    """The prompts given on the command line, followed by those in a file, one per line."""
    prompts = list(given)
    if file is not None:
        prompts += [line for _, line in read_lines("--prompts", file, "give a text file with one prompt per line")]
    if not prompts:
        raise InputError("--prompt: missing → say what to draw, or give --prompts FILE with one prompt per line")
    return prompts


def evaluate(asked: argparse.Namespace) -> int:
    from bootpig.flows.cli.generate import evaluate
    from bootpig.flows.runs.trained import model_folder
    from bootpig.stages.report.html import results_table

    config = load_config(asked.config, asked.set)
    check_writable("--out", Path(asked.out))
    with _scratch() as scratch, display.shown_on(Console(stderr=True)) as screen:
        folder = model_folder(asked.model, config.root, scratch)
        with screen.stage("evaluate", 1) as bar:
            try:
                metrics = evaluate(folder, config, Path(asked.out), bar.result())
            except FatalError as error:
                print(f"evaluate: {error}", file=sys.stderr)
                return 1
    Console().print(results_table(metrics), highlight=False, markup=False)
    print(Path(asked.out) / "contact_sheet.png")
    return 0


def check_writable(option: str, path: Path) -> None:
    """Check before any work that a result can be written to `path`. Creates missing parent folders.

    Raises:
        InputError: it cannot be written.
    """
    try:
        folder = path.absolute().parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if path.is_file() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{option}: {str(path)!r} → cannot be written ({reason}); give another place") from None


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    check_scratch()
    with tempfile.TemporaryDirectory(prefix="bootpig-") as folder:
        yield Path(folder)
