"""The settings of a rival: another method that draws the captions of an evaluation."""

from __future__ import annotations

import re
from string import Formatter

from pydantic import Field, model_validator

from bootpig.stages.engine.contract import MODEL, StageConfig
from bootpig.stages.engine.fields import Dtype, ModelName, Revision

SUBJECT = "{subject}"
"""In a path: the name of the subject."""

TAKEN = ("text_only", "untrained", "bootpig", "bootpig_no_reference", "round_before", "real", "reference")
"""Names of rows and folders of an evaluation that are not rivals."""


class RivalConfig(StageConfig):
    """A diffusers pipeline that takes a picture and a prompt, or a text-to-image model fine-tuned for each subject."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9 ._+-]{0,38}[A-Za-z0-9_+-])?$",
        description="Name of its row in the table and of its folder of pictures.",
    )
    model: ModelName | None = Field(
        default=None,
        json_schema_extra=MODEL,
        description="A diffusers pipeline, a folder or a hub id. {subject} in it is the subject's name: a model that "
        "was fine-tuned for this subject, such as with DreamBooth.",
    )
    base: ModelName | None = Field(
        default=None,
        json_schema_extra=MODEL,
        description="In place of model: the text-to-image pipeline that lora or textual_inversion is loaded into.",
    )
    revision: Revision = None
    lora: ModelName | None = Field(
        default=None,
        json_schema_extra=MODEL,
        description="Folder or file of each subject's LoRA, with {subject}.",
    )
    textual_inversion: ModelName | None = Field(
        default=None,
        json_schema_extra=MODEL,
        description="File of each subject's learned embedding, with {subject}.",
    )
    token: str | None = Field(
        default=None, pattern=r"^\S+$", description="The word of that embedding in a prompt, such as <sks>."
    )
    ip_adapter: ModelName | None = Field(
        default=None,
        json_schema_extra=MODEL,
        description="An IP-Adapter for model, a Stable Diffusion: a folder or a hub id, loaded as diffusers does.",
    )
    ip_adapter_revision: Revision = None
    subfolder: str | None = Field(default=None, description="Folder of its weights in ip_adapter. null: at its top.")
    weight_name: str | None = Field(
        default=None, min_length=1, description="File of its weights. null: the only one in that folder."
    )
    image_encoder: str | None = Field(
        default=None,
        min_length=1,
        description="Folder of its CLIP image encoder: within subfolder if the name has no /, else within ip_adapter. "
        "null: image_encoder, or none if model has one.",
    )
    scale: float | None = Field(default=None, ge=0, le=2, description="Weight of the IP-Adapter. null: 0.6.")
    prompt: str | None = Field(
        default=None,
        min_length=1,
        description="The phrase that replaces the class and its article in each prompt. {class} is the class, {token} "
        "the token. Required for fine-tuned models, such as: a sks {class}. null: the prompts as they are, or a "
        "{token}.",
    )
    size: int | None = Field(
        default=None,
        ge=8,
        le=4096,
        description="Height and width of its pictures in pixels. null: the resolution of its UNet, or that of the "
        "references for a pipeline without one.",
    )
    steps: int | None = Field(default=None, ge=1, le=1000, description="Denoising steps. null: evaluate.steps.")
    guidance_scale: float | None = Field(
        default=None, ge=0, le=100, description="Text guidance scale. null: evaluate.guidance_scale."
    )
    dtype: Dtype | None = Field(default=None, description="Dtype of its networks. null: evaluate.dtype.")

    @model_validator(mode="after")
    def _one_kind(self) -> RivalConfig:
        if (self.model is None) == (self.base is None):
            raise ValueError(f"{self.name}: needs model, or base with lora or textual_inversion; give one of the two")
        learned = {name: value for name in ("lora", "textual_inversion") if (value := getattr(self, name)) is not None}
        if self.base is not None and not learned:
            raise ValueError(f"{self.name}.base: {self.base!r} → needs lora or textual_inversion; or call it model")
        if self.base is None and learned:
            raise ValueError(f"{self.name}.{next(iter(learned))}: needs base, the pipeline that it is loaded into")
        for name, value in learned.items():
            if SUBJECT not in value:
                raise ValueError(f"{self.name}.{name}: {value!r} has no {SUBJECT}; give one for each subject")
        if self.base is not None and SUBJECT in self.base:
            raise ValueError(f"{self.name}.base: {self.base!r} has {SUBJECT}; give one base, or call it model")
        for name, value in {**learned, "model": self.model or ""}.items():
            _check_blanks(f"{self.name}.{name}", value, ("subject",))
        if (self.token is None) != (self.textual_inversion is None):
            raise ValueError(f"{self.name}: textual_inversion and token belong together; give both or neither")
        return self

    @model_validator(mode="after")
    def _adapter(self) -> RivalConfig:
        if self.ip_adapter is not None:
            if self.model is None or SUBJECT in self.model:
                raise ValueError(f"{self.name}.ip_adapter: needs model, one Stable Diffusion for all subjects")
            return self
        names = ("ip_adapter_revision", "subfolder", "weight_name", "image_encoder", "scale")
        if given := self.changed(names):
            raise ValueError(f"{self.name}.{given[0]}: has no effect without ip_adapter; remove it, or add ip_adapter")
        return self

    @model_validator(mode="after")
    def _phrase(self) -> RivalConfig:
        if self.fine_tuned and self.phrase is None:
            raise ValueError(
                f"{self.name}.prompt: missing → give the phrase that the models were trained with, such as "
                "'a sks {class}'"
            )
        if self.phrase is not None:
            _check_blanks(f"{self.name}.prompt", self.phrase, ("class", "token") if self.token else ("class",))
            if self.token is not None and self.token not in self.phrase.replace("{token}", self.token):
                raise ValueError(f"{self.name}.prompt: {self.phrase!r} has no {{token}}; insert it")
        return self

    @property
    def fine_tuned(self) -> bool:
        """Whether there is a model for each subject. Else it is given the subject's picture."""
        return self.base is not None or SUBJECT in (self.model or "")

    @property
    def phrase(self) -> str | None:
        """What names the subject in a prompt, with the blanks `{class}` and `{token}`. None: the class."""
        return self.prompt if self.prompt is not None or self.token is None else "a {token}"


def _check_blanks(field: str, text: str, allowed: tuple[str, ...]) -> None:
    try:
        found = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise ValueError(f"{field}: {text!r} → {error}; write {{{{ and }}}} for literal braces") from None
    if others := sorted(found - set(allowed)):
        shown = ", ".join(f"{{{name}}}" for name in allowed)
        raise ValueError(f"{field}: {text!r} has {{{others[0]}}}; only {shown} is replaced")


def different_names(rivals: tuple[RivalConfig, ...]) -> tuple[RivalConfig, ...]:
    """Raises ValueError if two rivals, or a rival and one of our methods, would have the same folder of pictures."""
    seen = {_folded(name): name for name in TAKEN}
    for rival in rivals:
        if (other := seen.get(_folded(rival.name))) is not None:
            raise ValueError(f"{rival.name!r} would have the folder of pictures of {other!r}; give it another name")
        seen[_folded(rival.name)] = rival.name
    return rivals


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "_", name.casefold())
