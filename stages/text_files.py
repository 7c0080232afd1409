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
"""Byte order marks and the encodings they stand for; that of UTF-32 begins like that of UTF-16."""

_YAML_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"([-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)?|\.[0-9][0-9_]*([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
}
"""Tag → what is a number of this kind: as in YAML 1.1, but without octal, binary and base 60."""

_LINE_END = re.compile(r"\r\n|\n|\r")


def read_text(field: str, path: str | Path, wanted: str = "give a UTF-8 text file") -> str:
    """The text of a file: UTF-8, or what its byte order mark says.

    Args:
        field: the setting or option that names the file, for messages.
        wanted: what to give in its place, for messages.

    Raises:
        InputError: it is missing, unreadable, or no text.
    """
    shown = repr(str(path))
    try:
        data = Path(path).expanduser().read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{field}: {shown} → cannot be read ({reason}); {wanted}") from None
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{field}: {shown}, line {line} → is not UTF-8; save the file as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{field}: {shown}, line {line} → is no text, or UTF-16 without a mark; save it as UTF-8")
    return text


def read_lines(field: str, path: str | Path, wanted: str = "give a UTF-8 text file") -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped, with their numbers from 1.

    Lines end at line feeds and carriage returns only: a U+2028, which editors show as a space, is part of its line.

    Raises:
        InputError: as `read_text`.
    """
    lines = _LINE_END.split(read_text(field, path, wanted))
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def parse_yaml(text: str) -> Any:
    """The value of a YAML document, by PyYAML's safe loader.

    Raises:
        ValueError: it is no YAML, or has a key twice, of which PyYAML would keep the last. The message is one line.
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
                raise yaml.constructor.ConstructorError(None, None, "a list or mapping is no key", key_node.start_mark)
            if key_node.tag != "tag:yaml.org,2002:merge" and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
