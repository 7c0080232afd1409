"""A real browser for tests. They skip without it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SWITCHES += ["--disable-component-update", "--disable-sync"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser, as playwright's."""
    if CHROMIUM is None:
        pytest.skip("needs chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


def keep(page: Any, name: str) -> None:
    """Keep a picture of the page in the folder BOOTPIG_SCREENSHOTS, if that is set."""
    folder = os.environ.get("BOOTPIG_SCREENSHOTS")
    if folder:
        file = Path(folder) / f"{name}.png"
        page.screenshot(path=file)
        Image.open(file).convert("RGB").quantize(64).save(file, optimize=True)
