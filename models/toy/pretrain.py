"""Trains the toy checkpoints from scratch: `python -m bootpig.models.toy.pretrain [--only vae diffusion …]`."""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

import torch

CHECKPOINTS = Path(__file__).parent / "checkpoints"
PARTS = ("vae", "diffusion", "detector", "sam", "clip", "clip_judge", "dino")
"""Training order: the diffusion model needs the VAE, and both CLIPs start from the detector's vision model."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="checkpoints to train, in this order")
    parser.add_argument(
        "--work", type=Path, default=Path("data/pretrain"), help="folder for renders and resumable states"
    )
    parser.add_argument("--out", type=Path, default=CHECKPOINTS, help="folder for the finished checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for part in arguments.only:
        started = time.monotonic()
        module = importlib.import_module(f"bootpig.models.toy.{part}")
        module.save(arguments.work, arguments.out, torch.device(arguments.device))
        print(f"{part}: done in {(time.monotonic() - started) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
