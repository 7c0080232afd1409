"""Fills the class of a subject, or another phrase that names it, into prompts."""

from __future__ import annotations

import re

OBJECT = "{object}"
"""In a prompt: the place of the subject's class."""

_ARTICLES = ("a", "an", "the")
_BEFORE_A_PHRASE = re.compile(
    r"about|above|across|after|against|along|among|and|around|as|at|behind|below|beneath|beside|between|beyond|by|for|"
    r"from|in|inside|into|like|near|of|on|onto|or|over|past|than|through|to|toward|towards|under|underneath|upon|via|"
    r"where|while|with|within|without|.*[^\w]",
    re.IGNORECASE,
)
"""Words after which a whole noun phrase follows, with its article. After others, such as `red`, only its noun does."""


def fill(prompt: str, noun: str) -> str:
    """`prompt` with `{object}` replaced, its article corrected: `a {object}` → `an umbrella`."""

    def replacement(match: re.Match[str]) -> str:
        article = match["article"] or ""
        if article:
            article = f"{article[0]}{'n' if noun[0].lower() in 'aeiou' else ''} "
        return f"{article}{noun}"

    return re.sub(r"(?P<article>\b[Aa] )?\{object\}", replacement, prompt)


def with_object(prompt: str, noun: str) -> str:
    """`prompt` with `{object}` in place of its first mention of `noun`, whatever its case; unchanged if it has none."""
    words = r"[\s_-]+".join(re.escape(word) for word in noun.split())
    if OBJECT in prompt or not words:
        return prompt
    return re.sub(rf"(?<!\w){words}(?!\w)", OBJECT, prompt, count=1, flags=re.IGNORECASE)


def with_phrase(template: str, phrase: str) -> str:
    """`template` with `phrase` in place of the class and its article: with the phrase `a sks dog`, `a {object} at the
    sea` → `a sks dog at the sea`, and `a red {object}` → `a red sks dog`.

    A template without `{object}` is put behind the phrase.
    """
    if OBJECT not in template:
        return f"{phrase}, {template}"
    article, _, rest = phrase.partition(" ")
    noun = rest if rest and article.lower() in _ARTICLES else phrase

    def replacement(match: re.Match[str]) -> str:
        word = match["word"] or ""
        if word.lower() in _ARTICLES:
            return phrase[0].upper() + phrase[1:] if word[0].isupper() and noun != phrase else phrase
        whole = not word or _BEFORE_A_PHRASE.fullmatch(word)
        return f"{match['before'] or ''}{phrase if whole else noun}"

    return re.sub(r"(?P<before>(?P<word>[^\s{}]+)\s+)?\{object\}", replacement, template)
