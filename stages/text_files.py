"""Reads the text files that a user gives: captions, prompts, configurations, lists of subjects."""

from __future__ import annotations

import codecs
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from bootpig.stages.engine.contract import InputError

_MARKS = [
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
"""Byte order marks and their encodings. UTF-32 comes before UTF-16 because its mark starts with that of UTF-16."""

_YAML_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"([-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)?|\.[0-9][0-9_]*([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
}
"""Tag → what is a number of this kind: as in YAML 1.1, but without octal, binary and base 60."""

_LINE_END = re.compile(r"\r\n|\n|\r")


def read_text(field: str, path: str | Path, wanted: str = "give a UTF-8 text file") -> str:
    """Read a text file in UTF-8, or in the encoding of its byte order mark.

    Args:
        field: the setting or option that names the file, for error messages.
        path: the file.
        wanted: what the user should give instead, for error messages.

    Raises:
        InputError: the file is missing, unreadable or not text.
    """
    shown = repr(str(path))
    try:
        data = Path(path).expanduser().read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{field}: {shown} → cannot be read ({reason}); {wanted}") from None
    try:
        text = decoded(data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{field}: {shown}, line {line} → is not UTF-8; save the file as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(
            f"{field}: {shown}, line {line} → is not text, or UTF-16 without a byte order mark; save it as UTF-8"
        )
    return text


def decoded(data: bytes) -> str:
    """The text of a file in UTF-8, or in the encoding of its byte order mark. Raises UnicodeDecodeError."""
    return data.decode(next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8"))


def read_lines(field: str, path: str | Path, wanted: str = "give a UTF-8 text file") -> list[tuple[int, str]]:
    """Read the non-blank lines of a text file: (line number from 1, stripped text).

    Only line feeds and carriage returns end a line. U+2028, which editors show as a space, does not.

    Raises:
        InputError: as in `read_text`.
    """
    lines = _LINE_END.split(read_text(field, path, wanted))
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def parse_yaml(text: str) -> Any:
    """Parse a YAML document with PyYAML's safe loader.

    Raises:
        ValueError: the text is not YAML, or a key occurs twice (PyYAML would keep the last). The message is one line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:  # a date such as 2020-13-45 is a ValueError
        raise ValueError(" ".join(str(error).split())[:300]) from None


class _Loader(yaml.SafeLoader):
    """The safe YAML loader, except that a duplicate key is an error, and that text stays text where YAML 1.1 sees other
    things in it: 010 is not 8, 12:30 is not 750, and 2024-01-01 is no date, which no setting takes."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {
        first: [(tag, _YAML_NUMBERS.get(tag, found)) for tag, found in known if not tag.endswith(":timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a list or mapping cannot be a key", key_node.start_mark
                )
            if key_node.tag != "tag:yaml.org,2002:merge" and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
