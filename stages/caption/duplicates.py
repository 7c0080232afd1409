"""Finds duplicate captions: equal after normalisation, or about the same subject in nearly the same words.

Near-duplicates are only searched among captions with the same subject (the head noun of the object phrase), because
captions that differ only in the subject are useful. Each word is mapped to one character, so that rapidfuzz compares
words as fast as letters. Similar captions always share one of their rarest words, so a caption is only compared with
captions that do. This is the prefix filter of set-similarity joins; it misses nothing, however rarity is defined.
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
    """An index of the captions seen so far.

    Args:
        near: threshold in (0, 1] for near-duplicates. The similarity of two captions about the same subject is
            2·(longest common subsequence of words) / (sum of lengths), which is symmetric. 1: only equal captions.
    """

    def __init__(self, near: float) -> None:
        self.near = near
        self.subjects: Counter[str] = Counter()
        """Number of captions by subject."""
        self._seen: set[str] = set()
        self._kept: list[tuple[str, str]] = []
        """(subject, normalised caption)."""
        self._alike: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        """(subject, one of its rarest words) → spelled captions."""
        self._frequency: Counter[str] = Counter()
        """Word frequencies as of the last `_reorder`."""
        self._ordered_at = 0
        self._letters: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def repeats(self, caption: str) -> bool:
        """Whether a caption equal or similar to this one was added before."""
        text = normalised(caption)
        if text in self._seen:
            return True
        spelled, subject = self._spell(text), subject_of(caption)
        # slightly lower, so that rounding never makes the relation asymmetric
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
        """Recount word frequencies. Done each time the number of captions has doubled."""
        self._ordered_at = len(self._kept)
        self._frequency = Counter(word for _, text in self._kept for word in _body(text))
        self._alike.clear()
        for subject, text in self._kept:
            self._file(subject, text)

    def _spell(self, text: str) -> str:
        return "".join(self._letters.get(word) or self._letter(word) for word in _body(text))

    def _rarest(self, text: str) -> list[str]:
        """The rarest words; similar captions have at least one of them in common. Empty for near = 1."""
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
    """The words after `a photo of`, which all captions share."""
    return text.split()[3:]


def subject_of(caption: str) -> str:
    """The head noun of a caption's object phrase, or of the whole caption if it has no object phrase."""
    return head_noun(object_phrase(caption) or caption)
