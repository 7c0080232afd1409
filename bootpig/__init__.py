"""BootPIG: subject-driven image generation from bootstrapped data.

The one package that is installed. Its subpackages are the repository's top-level folders.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bootpig.models.pipelines.sd import BootPIGPipeline
    from bootpig.models.pipelines.sd_inpaint import BootPIGInpaintPipeline
    from bootpig.models.pipelines.xl import BootPIGXLPipeline
    from bootpig.models.pipelines.xl_inpaint import BootPIGXLInpaintPipeline

__all__ = ["BootPIGInpaintPipeline", "BootPIGPipeline", "BootPIGXLInpaintPipeline", "BootPIGXLPipeline"]

__version__ = "0.1.0"

_MODULES = {
    "BootPIGPipeline": "bootpig.models.pipelines.sd",
    "BootPIGInpaintPipeline": "bootpig.models.pipelines.sd_inpaint",
    "BootPIGXLPipeline": "bootpig.models.pipelines.xl",
    "BootPIGXLInpaintPipeline": "bootpig.models.pipelines.xl_inpaint",
}


def __getattr__(name: str) -> Any:
    # torch and diffusers take seconds to import: only who asks for a pipeline waits for them
    if name not in _MODULES:
        raise AttributeError(f"module 'bootpig' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
