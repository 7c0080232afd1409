"""A small byte-level BPE in CLIP's own format, for the text towers of the toy CLIP and the toy detector."""

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
    """Every caption of the grammar, kind by kind: 12 × 3 × 8."""
    return [caption(kind, position, scene) for kind in KINDS for position in POSITIONS for scene in SCENES]


def build_tokenizer(texts: Iterable[str], max_length: int) -> CLIPTokenizer:
    """Learn the merges of `texts`; any other word falls into bytes.

    The two special tokens come last, as in CLIP: its text towers pool at the highest id.

    Args:
        max_length: tokens, both special tokens included; padding and truncation go there.
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
