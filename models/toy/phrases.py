"""Random phrases to train the toy detector: for the kinds of the toy world, and for nouns that do not occur in it."""

from __future__ import annotations

import numpy as np

from bootpig.models.toy.world import KINDS, with_article

_ADJECTIVES = """
red orange yellow green blue purple pink white black grey brown small big old new shiny striped dotted checked faded
wooden ceramic plastic bright dark colourful little large vintage plain
"""
ADJECTIVES = tuple(_ADJECTIVES.split())
_STRANGERS = """
dog cat tree chair guitar bicycle lamp clock book bottle shoe hat bird horse flower apple camera phone piano spoon
ladder train ship bench drum candle bucket cake bear table beach meadow hill sky wall street carpet
"""
STRANGERS = tuple(_STRANGERS.split())
"""Nouns that are not a kind of the toy world; phrases with them have no box."""


def simple_phrase(noun: str, rng: np.random.Generator) -> str:
    """A simple phrase for `noun`, such as `a mug`, `mug`, `the old mug`, `a photo of a mug`."""
    named = f"{rng.choice(ADJECTIVES)} {noun}" if rng.random() < 0.3 else noun
    return _with_article(named, rng)


def rich_phrase(noun: str, rng: np.random.Generator) -> str:
    """A longer phrase as a person or an LLM might write: up to three adjectives, known or not, sometimes `with a …`."""
    adjectives = [
        invented_word(rng) if rng.random() < 0.4 else str(rng.choice(ADJECTIVES))
        for _ in range(rng.choice(4, p=(0.3, 0.35, 0.25, 0.1)))
    ]
    named = " ".join([*adjectives, noun])
    if rng.random() < 0.15:
        tail = invented_word(rng) if rng.random() < 0.5 else str(rng.choice((*STRANGERS, *ADJECTIVES)))
        named += f" {rng.choice(('with a', 'with', 'of', 'made of'))} {tail}"
    return _with_article(named, rng)


def strange_noun(rng: np.random.Generator) -> str:
    """A known or invented noun that is not a kind of the toy world."""
    while (noun := invented_word(rng) if rng.random() < 0.6 else str(rng.choice(STRANGERS))) in KINDS:
        pass
    return noun


def invented_word(rng: np.random.Generator) -> str:
    """A pronounceable random word, to represent words that are not in the vocabulary."""
    syllables = [
        rng.choice(list("bcdfghjklmnprstvwz"))
        + rng.choice(list("aeiou"))
        + rng.choice(["", "", "l", "n", "r", "s", "t"])
        for _ in range(rng.integers(1, 4))
    ]
    return "".join(syllables) + str(rng.choice(["", "d", "y", "er", "ing"]))


def _with_article(named: str, rng: np.random.Generator) -> str:
    article = with_article(named)
    return (article, article, named, f"the {named}", f"a photo of {article}")[rng.integers(5)]
