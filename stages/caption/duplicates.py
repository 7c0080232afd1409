"""Captions that repeat others: equal after normalisation, or the same subject in nearly the same words.

Near-duplicates are looked for among the captions of one subject (the head noun of the object phrase) only: captions
that differ in nothing but the subject are what a data set wants. Each word is one character of a string, so that
rapidfuzz compares words at the speed of letters. Two captions that are alike share one of their rarest words: a
caption is compared with those only that do (the prefix filter of set-similarity joins; it misses none, whatever
counts as rare).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict

from rapidfuzz import fuzz, process

from bootpig.stages.caption.phrases import head_noun, object_phrase

_WORD = re.compile(r"\w+(?:['’]\w+)*[+#]*|[^\w\s]")
_FIRST, _SURROGATES = 0x100, range(0xD800, 0xE000)


def normalised(caption: str) -> str:
    """The words of a caption in their order: no case, no punctuation, compatibility forms folded.

    A symbol is a word of its own, so that `a 🦊` is not `a 🐻`; signs behind a word belong to it: `C++` is not `C#`.
    """
    words = _WORD.findall(unicodedata.normalize("NFKC", caption).casefold())
    return " ".join(word for word in words if word[0].isalnum() or word[0] == "_" or unicodedata.category(word) == "So")


class DuplicateIndex:
    """Captions seen so far.

    Args:
        near: share of equal words, in order, from which on two captions of one subject are near-duplicates, in (0, 1]:
            2·(longest common subsequence) / (sum of lengths). The relation is symmetric. 1: equal ones only.
    """

    def __init__(self, near: float) -> None:
        self.near = near
        self.subjects: Counter[str] = Counter()
        """Captions by subject."""
        self._seen: set[str] = set()
        self._kept: list[tuple[str, str]] = []
        """(subject, normalised caption)."""
        self._alike: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        """(subject, one of its rarest words) → spelled captions."""
        self._frequency: Counter[str] = Counter()
        """Of words, when half of the captions that are here now were."""
        self._ordered_at = 0
        self._letters: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def repeats(self, caption: str) -> bool:
        """Whether one like it was added."""
        text = normalised(caption)
        if text in self._seen:
            return True
        spelled, subject = self._spell(text), subject_of(caption)
        # a hair lower, so that rounding never makes the relation asymmetric
        cutoff = 100 * self.near - 1e-6
        return any(
            process.extractOne(spelled, self._alike.get((subject, word), ()), scorer=fuzz.ratio, score_cutoff=cutoff)
            for word in self._rarest(text)
        )

    def add(self, caption: str) -> None:
        text, subject = normalised(caption), subject_of(caption)
        self._seen.add(text)
        self.subjects[subject] += 1
        if self.near >= 1:
            return
        self._kept.append((subject, text))
        self._file(subject, text)
        if len(self._kept) >= 2 * max(self._ordered_at, 500):
            self._reorder()

    def _file(self, subject: str, text: str) -> None:
        spelled = self._spell(text)
        for word in self._rarest(text):
            self._alike[subject, word].append(spelled)

    def _reorder(self) -> None:
        """Count words anew; done whenever the captions have doubled."""
        self._ordered_at = len(self._kept)
        self._frequency = Counter(word for _, text in self._kept for word in _body(text))
        self._alike.clear()
        for subject, text in self._kept:
            self._file(subject, text)

    def _spell(self, text: str) -> str:
        return "".join(self._letters.get(word) or self._letter(word) for word in _body(text))

    def _rarest(self, text: str) -> list[str]:
        """The words of which a caption that is alike has at least one among its own rarest; none for near = 1."""
        if self.near >= 1:
            return []
        seen: Counter[str] = Counter()
        tokens = []
        for word in _body(text):
            seen[word] += 1
            tokens.append((self._frequency[word], word, seen[word]))
        tokens.sort()
        shared = math.ceil(self.near * len(tokens) / (2 - self.near) - 1e-6)
        return [f"{word} {nth}" for _, word, nth in tokens[: len(tokens) - shared + 1]]

    def _letter(self, word: str) -> str:
        code = _FIRST + len(self._letters)
        code += len(_SURROGATES) if code >= _SURROGATES.start else 0
        return self._letters.setdefault(word, chr(code))


def _body(text: str) -> list[str]:
    """The words behind `a photo of`, which all captions share."""
    return text.split()[3:]


def subject_of(caption: str) -> str:
    """The head noun of a caption's object phrase; the caption's first words where it has none."""
    return head_noun(object_phrase(caption) or caption)
