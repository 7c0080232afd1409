"""Every argument of a pipeline's call reaches the field of its name."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest

from bootpig.models.pipelines.request import Request, Sizes
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pipelines.sd_inpaint import BootPIGInpaintPipeline
from bootpig.models.pipelines.xl import BootPIGXLPipeline
from bootpig.models.pipelines.xl_inpaint import BootPIGXLInpaintPipeline

INPAINTING = ("image", "mask_image", "strength", "padding_mask_crop")


class Receiver:
    """Takes what a call hands on."""

    def _generate(self, request: Request) -> tuple[Request, tuple[Any, ...]]:
        return request, ()

    def _inpaint(self, request: Request, *inputs: Any) -> tuple[Request, tuple[Any, ...]]:
        return request, inputs


@pytest.mark.parametrize("kind", [BootPIGPipeline, BootPIGInpaintPipeline, BootPIGXLPipeline, BootPIGXLInpaintPipeline])
def test_arguments_reach_their_fields(kind: Any) -> None:
    names = set(inspect.signature(kind.__call__).parameters) - {"self"}
    given = {name: object() for name in names}
    request, inputs = kind.__call__(Receiver(), **given)
    assert inputs == tuple(given[name] for name in INPAINTING if name in names)
    for field in fields(Request):
        expected = given[field.name] if field.name in names else field.default
        assert getattr(request, field.name) is expected, field.name
    assert names == {*(names & set(INPAINTING)), *(names & {field.name for field in fields(Request)})}


def request(**given: Any) -> Request:
    names = {name for name in inspect.signature(BootPIGXLPipeline.__call__).parameters if name != "self"}
    return Request(**{**dict.fromkeys(names), "crops_coords_top_left": (0, 0), **given})


def test_sizes_are_the_results_where_none_is_given() -> None:
    positive, negative = request().sizes((64, 32))
    assert positive is negative
    assert (positive.original, positive.crop, positive.target) == ((64, 32), (0, 0), (64, 32))


def test_negative_sizes_need_both() -> None:
    sizes = {"negative_original_size": (8, 9), "negative_crops_coords_top_left": (1, 2)}
    positive, negative = request(**sizes).sizes((64, 32))
    assert positive is negative, "as in diffusers"
    _, other = request(**sizes, negative_target_size=(3, 4)).sizes((64, 32))
    assert isinstance(other, Sizes) and (other.original, other.crop, other.target) == ((8, 9), (1, 2), (3, 4))
