"""Builds a small byte-level BPE tokenizer in CLIP's format, for the toy models that read text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from bootpig.models.toy.world import KINDS, POSITIONS, SCENES, caption

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def all_captions() -> list[str]:
    """All 12 × 3 × 8 captions of the grammar, ordered by kind, position, scene."""
    return [caption(kind, position, scene) for kind in KINDS for position in POSITIONS for scene in SCENES]


def build_tokenizer(texts: Iterable[str], max_length: int) -> CLIPTokenizer:
    """A tokenizer with merges learned from `texts`. Other words are split into bytes.

    The two special tokens have the highest ids, as in CLIP, whose text models pool at the highest id.

    Args:
        max_length: maximum number of tokens, including both special tokens, for padding and truncation.
    """
    split = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix=_WORD_END))
    learner.normalizer, learner.pre_tokenizer = split.normalizer, split.pre_tokenizer
    trainer = BpeTrainer(vocab_size=4096, end_of_word_suffix=_WORD_END, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    merges: list[Any] = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*symbols, *(symbol + _WORD_END for symbol in symbols), *(a + b for a, b in merges), BEGIN, END]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)
