"""Measures the toy checkpoints on held-out renders: `python -m bootpig.models.toy.check [--json] [--only vae …]`.

Checkpoints are loaded with the real classes, as a user would load them. Exits with 1 if a requirement is not met.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from rich.console import Console
from rich.table import Table
from segment_anything import SamPredictor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    CLIPModel,
    CLIPProcessor,
)
from transformers.utils.logging import disable_progress_bar

from bootpig.models.toy.clip import judge
from bootpig.models.toy.clip_judge import subject_auc
from bootpig.models.toy.dino import identity_auc, views
from bootpig.models.toy.looks import COLOURS, FACTS, colour_phrases, facts_of
from bootpig.models.toy.pretrain import CHECKPOINTS
from bootpig.models.toy.renders import Renders, scenes
from bootpig.models.toy.sam_model import build_sam_vit_toy
from bootpig.models.toy.tokens import all_captions
from bootpig.models.toy.vae import psnr
from bootpig.models.toy.world import KINDS, POSITIONS, SCENES, SIZE, with_article

DETECTION_THRESHOLD = 0.1
POSITION_BOUNDS = (0.42, 0.58)
"""Box centres, as fractions of the width, that separate left, centre and right. For the true boxes, 100 % correct."""
GENERATED = 192
GUIDANCE = 4.0
STEPS = 25


@dataclass(frozen=True)
class Bar:
    group: str
    limit: float
    at_most: bool = False

    def holds(self, value: float | None) -> bool:
        return value is not None and (value <= self.limit if self.at_most else value >= self.limit)


BARS = {
    "vae_psnr_db": Bar("vae", 28),
    "t2i_kind_accuracy": Bar("t2i", 0.90),
    "t2i_scene_accuracy": Bar("t2i", 0.90),
    "t2i_position_accuracy": Bar("t2i", 0.85),
    "detector_recall_50": Bar("detector", 0.95),
    "sam_mean_iou": Bar("sam", 0.90),
    "clip_kind_accuracy": Bar("clip", 0.97),
    "judge_kind_accuracy": Bar("clip_judge", 0.95),
    "judge_scene_accuracy": Bar("clip_judge", 0.97),
    "judge_colour_accuracy": Bar("clip_judge", 0.68),
    "judge_subject_auc": Bar("clip_judge", 0.88),
    "dino_identity_auc": Bar("dino", 0.97),
    "megabytes": Bar("size", 40, at_most=True),
}


class Check:
    """The measurements. `checkpoints` is the folder to measure; held-out renders are cached in `work`."""

    def __init__(self, checkpoints: Path, work: Path) -> None:
        self.checkpoints = checkpoints
        self.work = work

    def held_out(self) -> Renders:
        """512 scenes of identities that were not used in training."""
        return scenes("check", 512, "held_out", self.work)

    def measure(self, group: str) -> dict[str, float]:
        """The results of one group, by their key in `BARS`."""
        groups: dict[str, Callable[[], dict[str, float]]] = {
            "vae": self.vae,
            "t2i": self.t2i,
            "detector": self.detector,
            "sam": self.sam,
            "clip": self.clip,
            "clip_judge": self.clip_judge,
            "dino": self.dino,
            "size": self.size,
        }
        with torch.inference_mode():
            return groups[group]()

    def vae(self) -> dict[str, float]:
        vae = AutoencoderKL.from_pretrained(self.checkpoints / "stable-diffusion" / "vae", dtype=torch.float32)
        return {"vae_psnr_db": psnr(vae.eval(), self.held_out().images, torch.device("cpu"))}

    def t2i(self) -> dict[str, float]:
        """Accuracy of generated pictures, with equally many captions of each kind, seeded by caption index."""
        pipeline = StableDiffusionPipeline.from_pretrained(self.checkpoints / "stable-diffusion", dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        captions, rng = all_captions(), random.Random("check/t2i")
        a_kind, share = len(POSITIONS) * len(SCENES), GENERATED // len(KINDS)
        chosen = [kind * a_kind + place for kind in range(len(KINDS)) for place in rng.sample(range(a_kind), share)]
        pictures: list[Image.Image] = []
        for begin in range(0, GENERATED, 32):
            batch = chosen[begin : begin + 32]
            pictures += pipeline(
                [captions[index] for index in batch],
                height=SIZE,
                width=SIZE,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                generator=[torch.Generator().manual_seed(index) for index in batch],
            ).images
        index = np.array(chosen)
        kinds, positions, backdrops = index // a_kind, index // len(SCENES) % len(POSITIONS), index % len(SCENES)
        judged = self.judged(pictures)
        boxes = self.detections(pictures, kinds)
        centres = np.array([(box[0] + box[2]) / 2 / SIZE if box is not None else np.nan for box in boxes])
        seen = np.where(np.isnan(centres), -1, np.digitize(centres, POSITION_BOUNDS))
        return {
            "t2i_kind_accuracy": float((judged["kind"] == kinds).mean()),
            "t2i_scene_accuracy": float((judged["scene"] == backdrops).mean()),
            "t2i_position_accuracy": float((seen == positions).mean()),
        }

    def judged(self, pictures: list[Image.Image], clip: str = "clip") -> dict[str, np.ndarray]:
        """The kind and scene of each picture according to one of the toy CLIPs."""
        image_embeds, text_embeds = self.embedded(clip, pictures, all_captions())
        return {axis: judge(image_embeds, text_embeds, axis).numpy() for axis in ("kind", "scene")}

    def embedded(self, clip: str, pictures: list[Image.Image], texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures and texts in the space of the toy CLIP in folder `clip`: N×D and M×D float32, normalised."""
        model = CLIPModel.from_pretrained(self.checkpoints / clip, dtype=torch.float32)
        processor = CLIPProcessor.from_pretrained(self.checkpoints / clip)
        output = model(**processor(text=texts, images=pictures, padding=True, return_tensors="pt"))
        return output.image_embeds, output.text_embeds

    def detections(self, pictures: list[Image.Image], kinds: np.ndarray) -> list[np.ndarray | None]:
        """The best box (xyxy, pixels) in each picture for its kind, with a phrase such as `a mug`; None if none."""
        folder = self.checkpoints / "owlvit"
        model = AutoModelForZeroShotObjectDetection.from_pretrained(folder, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(folder)
        best: list[np.ndarray | None] = []
        for begin in range(0, len(pictures), 64):
            part = pictures[begin : begin + 64]
            queries = [[with_article(KINDS[kind])] for kind in kinds[begin : begin + 64]]
            output = model(**processor(text=queries, images=part, return_tensors="pt"))
            for found in processor.post_process_grounded_object_detection(
                output, threshold=DETECTION_THRESHOLD, target_sizes=[(SIZE, SIZE)] * len(part)
            ):
                some = len(found["scores"]) > 0
                best.append(found["boxes"][found["scores"].argmax()].numpy() if some else None)
        return best

    def detector(self) -> dict[str, float]:
        data = self.held_out()
        boxes = self.detections([Image.fromarray(image) for image in data.images], data.kinds)
        hits = [box is not None and box_iou(box, true) >= 0.5 for box, true in zip(boxes, data.boxes, strict=True)]
        return {"detector_recall_50": float(np.mean(hits))}

    def sam(self) -> dict[str, float]:
        """Mean IoU for the detector's boxes. A picture without a box counts as 0."""
        data = self.held_out()
        predictor = SamPredictor(build_sam_vit_toy(self.checkpoints / "sam" / "sam_vit_toy.safetensors"))
        overlaps = []
        boxes = self.detections([Image.fromarray(image) for image in data.images], data.kinds)
        for image, box, true in zip(data.images, boxes, data.masks, strict=True):
            if box is None:
                overlaps.append(0.0)
                continue
            predictor.set_image(image)
            masks, _, _ = predictor.predict(box=box, multimask_output=False)
            overlaps.append((masks[0] & true).sum() / (masks[0] | true).sum())
        return {"sam_mean_iou": float(np.mean(overlaps))}

    def clip(self) -> dict[str, float]:
        data = self.held_out()
        judged = self.judged([Image.fromarray(image) for image in data.images])
        return {"clip_kind_accuracy": float((judged["kind"] == data.kinds).mean())}

    def clip_judge(self) -> dict[str, float]:
        """The CLIP that scores drawn pictures: of kinds and scenes by the pipeline's captions, of the subject's first
        colour by captions such as `A photo of a red mug`, and of one subject in two scenes against two subjects of a
        kind in one scene (384 held-out subjects)."""
        data = self.held_out()
        pictures = [Image.fromarray(image) for image in data.images]
        judged = self.judged(pictures, "clip-judge")
        facts = facts_of(data.kinds, data.positions, data.scenes, data.identities)
        image_embeds, text_embeds = self.embedded("clip-judge", pictures, colour_phrases())
        by_kind = text_embeds.view(len(KINDS), len(COLOURS), -1)[torch.from_numpy(data.kinds)]
        colours = torch.einsum("nd,ncd->nc", image_embeds, by_kind).argmax(1).numpy()
        pairs = scenes("check-pairs", 768, "held_out", self.work, paired=True)
        embeds, _ = self.embedded("clip-judge", [Image.fromarray(image) for image in pairs.images], ["a"])
        return {
            "judge_kind_accuracy": float((judged["kind"] == data.kinds).mean()),
            "judge_scene_accuracy": float((judged["scene"] == data.scenes).mean()),
            "judge_colour_accuracy": float((colours == facts[:, FACTS.index("colour")]).mean()),
            "judge_subject_auc": subject_auc(
                embeds.view(len(pairs) // 2, 2, -1), pairs.kinds[::2], pairs.scenes.reshape(-1, 2)
            ),
        }

    def dino(self) -> dict[str, float]:
        """AUC over 384 held-out identities, each in two scenes and once on white."""
        data = scenes("check-pairs", 768, "held_out", self.work, paired=True)
        pairs = views(data, self.work, "check-pairs")
        folder = self.checkpoints / "dino"
        model = AutoModel.from_pretrained(folder, dtype=torch.float32)
        processor = AutoImageProcessor.from_pretrained(folder)
        flat = [Image.fromarray(image) for image in pairs.reshape(-1, SIZE, SIZE, 3)]
        embeds = []
        for begin in range(0, len(flat), 128):
            inputs = processor(flat[begin : begin + 128], return_tensors="pt")
            embeds.append(torch.nn.functional.normalize(model(**inputs).last_hidden_state[:, 0], dim=-1))
        return {"dino_identity_auc": identity_auc(torch.cat(embeds).view(*pairs.shape[:2], -1), data.kinds[::2])}

    def size(self) -> dict[str, float]:
        total = sum(file.stat().st_size for file in self.checkpoints.rglob("*") if file.is_file())
        return {"megabytes": total / 1e6}


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two xyxy boxes."""
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = max(0.0, float(width)) * max(0.0, float(height))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return shared / (float(areas) - shared)


def main() -> int:
    groups = list(dict.fromkeys(bar.group for bar in BARS.values()))
    parser = argparse.ArgumentParser(description="Measure the toy checkpoints on held-out renders.")
    parser.add_argument("--json", action="store_true", help="print the results as a JSON object")
    parser.add_argument("--only", nargs="+", choices=groups, default=groups, help="measurements to make")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="folder written by pretrain")
    parser.add_argument("--work", type=Path, default=Path("data/pretrain"), help="cache folder for held-out renders")
    arguments = parser.parse_args()
    disable_progress_bar()
    arguments.work.mkdir(parents=True, exist_ok=True)
    check, notes = Check(arguments.checkpoints, arguments.work), Console(stderr=True)
    figures: dict[str, float | None] = {}
    for group in arguments.only:
        wanted = [key for key, bar in BARS.items() if bar.group == group]
        try:
            with notes.status(f"measuring {group}"):
                figures |= check.measure(group)
        except (OSError, RuntimeError, ValueError) as error:
            notes.print(f"{group}: cannot be measured: {error}", style="red", markup=False)
            figures |= dict.fromkeys(wanted)
    passed = {key: BARS[key].holds(value) for key, value in figures.items()}
    if arguments.json:
        print(
            json.dumps({key: value if value is None else round(value, 4) for key, value in figures.items()}, indent=2)
        )
    else:
        table = Table("key", "value", "bar", "pass")
        for key, value in figures.items():
            bar = BARS[key]
            table.add_row(
                key,
                "missing" if value is None else f"{value:.4g}",
                f"{'≤' if bar.at_most else '≥'} {bar.limit:g}",
                "yes" if passed[key] else "no",
                style=None if passed[key] else "red",
            )
        Console().print(table)
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
