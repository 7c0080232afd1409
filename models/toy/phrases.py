"""The phrases that the toy detector is asked with: ways to name a kind, and names of what the world doesn't hold."""

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
"""Nouns that name no kind: a phrase with one of them has no box."""


def simple_phrase(noun: str, rng: np.random.Generator) -> str:
    """`a mug`, `mug`, `the old mug`, `a photo of a mug`: one way to ask for `noun`."""
    named = f"{rng.choice(ADJECTIVES)} {noun}" if rng.random() < 0.3 else noun
    return _with_article(named, rng)


def rich_phrase(noun: str, rng: np.random.Generator) -> str:
    """As a person or an LLM would write it: up to three adjectives, known or not, and now and then `with a …`."""
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
    """A noun that names no kind: a known one or an invented one."""
    while (noun := invented_word(rng) if rng.random() < 0.6 else str(rng.choice(STRANGERS))) in KINDS:
        pass
    return noun


def invented_word(rng: np.random.Generator) -> str:
    """Three to ten letters that can be spoken: it stands for all the words that the vocabulary doesn't know."""
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
