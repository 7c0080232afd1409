"""The tables of docs/models.md, made from the code: `python -m bootpig.models.accepted` writes them into the file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bootpig.models.painters.families import FAMILIES
from bootpig.models.painters.family import Configs, Family, always, never
from bootpig.models.pipelines.supported import PROPERTIES
from bootpig.models.pretrained.phrases import FAMILIES as DETECTORS
from bootpig.models.pretrained.segmenters import SAM_TYPES
from bootpig.models.pretrained.source import PROJECT

DOCS = PROJECT / "docs" / "models.md"

_UNUSUAL: dict[str, Configs] = {"HunyuanImagePipeline": {"vae": {"spatial_compression_ratio": 32}}}
"""Of the families whose VAE has another factor than 8: a config of their real weights."""


def painters() -> str:
    """What `synthesize.model` accepts."""
    rows = []
    for family in FAMILIES:
        sizes = ", ".join(f"{width}×{height}" for height, width in family.sizes)
        sizes = sizes or f"multiples of {family.multiple(_UNUSUAL.get(family.classes[0], {}))}"
        calls = "" if family.batches else "one caption per call"
        rows.append(
            [
                family.name,
                f"`{family.classes[0]}`",
                sizes,
                _guidance(family),
                _negative(family),
                "; ".join(note for note in (family.note, calls) if note),
            ]
        )
    return _table(["family", "pipeline", "width and height", "`guidance_scale`", "`negative_prompt`", ""], rows)


def bases() -> str:
    """What `encode.model`, `train.model` and `evaluate.model` accept."""
    rows = [[each.component, f"`{each.name}`", each.handled] for each in PROPERTIES]
    return _table(["component", "property", "accepted"], rows)


def segmenters() -> str:
    """What `segment.detector` and `segment.sam` accept."""
    rows = [["`segment.detector`", family.name, f"`{kind}`"] for kind, family in DETECTORS.items()]
    rows += [["`segment.sam`", "segment-anything", f"`{kind}`"] for kind in SAM_TYPES]
    return _table(["field", "model", "`model_type` or `sam_type`"], rows)


def judges() -> str:
    """What `evaluate.clip` and `evaluate.dino` accept."""
    rows = [
        ["`evaluate.clip`", "`CLIPModel`", "image processor and tokenizer"],
        ["`evaluate.dino`", "`ViTModel`, `Dinov2Model` or another ViT with a class token", "image processor"],
    ]
    return _table(["field", "model", "needs besides its weights"], rows)


TABLES = {"painters": painters, "bases": bases, "segmenters": segmenters, "judges": judges}


def filled(text: str) -> str:
    """A document with the tables between its marks replaced by those of today."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{table()}\n{end}{rest.partition(end)[2]}"
    return text


def _guidance(family: Family) -> str:
    if family.guided is not always:
        return "where the weights read it"
    return "an input of the network" if family.embedded is always else "yes"


def _negative(family: Family) -> str:
    if family.negated is never:
        return "no"
    return "yes" if family.negated is always else "yes, unless distilled"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    DOCS.write_text(filled(DOCS.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
