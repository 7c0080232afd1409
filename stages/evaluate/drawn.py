"""Finds pictures that an earlier evaluation drew in the same way, so that they are not drawn again.

Each result says in `drawn.json`, for each method, the digest of all that its pictures depend on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from bootpig.stages.engine.earlier import Earlier, EarlierResult
from bootpig.stages.evaluate.gallery import DrawnPictures, Picture
from bootpig.storage.jsonio import parse_json

FILE = "drawn.json"


def find_earlier(keys: Mapping[str, str], earlier: Earlier) -> dict[str, Picture]:
    """Method → its pictures in an earlier result, for those that one has.

    Args:
        keys: method → the digest of all that its pictures depend on.
        earlier: finds the results.
    """
    found: dict[str, Picture] = {}
    wanted = {key: method for method, key in keys.items()}
    for result in earlier(lambda identity: None):
        for name, facts in _listed(result).items():
            if (method := wanted.get(facts["key"])) is not None:
                found.setdefault(method, partial(_picture, result, name, frozenset(facts["not_finite"])))
    return found


def describe(keys: Mapping[str, str], drawn: Mapping[str, DrawnPictures]) -> str:
    """The content of `drawn.json`."""
    facts = {
        method: {
            "key": keys[method],
            "not_finite": [pictures.rows[index].file for index in sorted(pictures.not_finite)],
        }
        for method, pictures in drawn.items()
    }
    return f"{json.dumps(facts, indent=2)}\n"


def _listed(result: EarlierResult) -> dict[str, dict[str, Any]]:
    data = result.read(FILE)
    try:
        listed = parse_json(data) if data is not None else {}
        return {
            str(name): {"key": str(facts["key"]), "not_finite": [str(file) for file in facts["not_finite"]]}
            for name, facts in listed.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _picture(result: EarlierResult, method: str, not_finite: frozenset[str], file: str) -> bytes | None:
    return b"" if file in not_finite else result.read(f"images/{method}/{file}")
