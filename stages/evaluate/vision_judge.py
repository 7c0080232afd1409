"""Scores of a vision model behind an OpenAI-compatible endpoint: one question about one picture per request.

Rounds, journal, replay and spending cap are those of captions (`stages/caption/llm/filling.py`). In the journal an
answer belongs to what was asked: the question, the picture, and the reference or the caption. The journal belongs to
the judge's settings, not to the evaluation: `evaluate/judge-<digest>/`. So pictures that are drawn again, equal to the
last byte, are not paid for again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import json_repair

from bootpig.stages.caption.llm.about_pictures import AGAIN
from bootpig.stages.caption.llm.answers import read_text
from bootpig.stages.caption.llm.faults import FAULTS
from bootpig.stages.caption.llm.filling import Filling
from bootpig.stages.caption.llm.journal import Journal, Key, Record
from bootpig.stages.caption.llm.ledger import Ledger, open_ledger
from bootpig.stages.caption.llm.pictures import picture_part, without_pictures
from bootpig.stages.caption.llm.requests import Asker, Filled, chat_request
from bootpig.stages.caption.llm.spending import prompt_tokens
from bootpig.stages.engine.contract import FatalError, Postponed, Progress, SourceContext
from bootpig.stages.evaluate.vision_judge_config import HIGHEST, PROMPTS, JudgeConfig
from bootpig.stages.plain_text import one_line
from bootpig.storage.fingerprint import digest, file_digest
from bootpig.storage.parts import Parts

if TYPE_CHECKING:
    from bootpig.stages.caption.llm.client import LLMClient

_LOG = logging.getLogger(__name__)

MOST_LOST = 0.05
"""Fraction of the questions that may stay without any answer. If more do, the endpoint does not work."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        "score": {"type": "integer", "enum": list(range(HIGHEST + 1))},
    },
    "required": ["reason", "score"],
    "additionalProperties": False,
}
AS_JSON = 'Answer with a JSON object: {"reason": "one sentence", "score": N}, where N is 0, 1, 2, 3 or 4.'
AS_TEXT = "Give your reason in one sentence. Then, on a line of its own, write Score: N, where N is 0, 1, 2, 3 or 4."

_SCORE = r"(-?[0-9]+(?:\.[0-9]+)?)(?:\s*(?:/|of|out\s+of)\s*([0-9]+))?"
_NAMED = re.compile(rf"\bscore\b[\W_]*?(?:(?:is|of|would\s+be)\b[\W_]*?)?{_SCORE}", re.IGNORECASE)
_ALONE = re.compile(rf"[\W_]*?{_SCORE}[\W_]*", re.IGNORECASE)
_FENCE = re.compile(r"```(?:json)?|```", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """A question about one picture."""

    kind: str
    """One of `QUESTIONS`."""
    picture: Path
    """PNG, RGB."""
    about: str
    """The caption, or what the subject is called."""
    reference: Path | None = None
    """The subject's reference, PNG, RGB, for `concept`."""


@dataclass(frozen=True)
class Score:
    """An answer. `score` is from 0 to `HIGHEST`, or None with a code in `reason`."""

    score: int | None
    reason: str = ""


class JudgeLedger(Ledger):
    """The journal of a judge, and what was spent."""

    def __init__(self, parts: Parts, config: JudgeConfig, folder: str) -> None:
        self._folder = folder
        super().__init__(parts, config)

    def open_journal(self) -> Journal:
        return Journal(self.parts.root, self._folder)


class QuestionAsker(Asker[int]):
    """Requests for one score each. `questions`: number in the journal → question, one per slot."""

    def __init__(self, config: JudgeConfig, questions: Mapping[int, Question]) -> None:
        self.config = config
        self.questions = questions
        self.numbers = list(questions)

    def connect(self) -> LLMClient:
        # importing the openai package is slow
        from bootpig.stages.caption.llm.client import LLMClient

        return LLMClient(self.config)

    def chunks(self, slots: Sequence[int]) -> list[list[int]]:
        return [[slot] for slot in slots]

    def keys(self, round: int, chunks: Sequence[Sequence[int]]) -> list[Key]:
        return [Key(self.numbers[slot], 0, round, 0) for (slot,) in chunks]

    def request(self, key: Key, asked: int, covered: Sequence[str], *, structured: bool) -> dict[str, Any]:
        question = self.questions[key.unit]
        text = PROMPTS[self.config.prompts][question.kind].format(object=question.about, prompt=question.about)
        lines = [text, AS_JSON if structured else AS_TEXT]
        if key.round:
            lines.append(AGAIN.format(number=key.round + 1))
        pictures = [path for path in (question.reference, question.picture) if path is not None]
        content = [{"type": "text", "text": "\n\n".join(lines)}, *(picture_part(p.read_bytes()) for p in pictures)]
        return chat_request(self.config, content, ("score", SCHEMA) if structured else None)

    def read(self, key: Key, record: Record, asked: int) -> Filled[int]:
        answer = read_score(record.body)
        if isinstance(answer, int):
            return Filled([answer])
        return Filled(fault=answer[0], message=f"{answer[0]}: {answer[1]}")

    def kept(self, request: dict[str, Any]) -> dict[str, Any]:
        """Without the pictures. The entry's name says which ones they are."""
        return without_pictures(request)

    @staticmethod
    def tokens(request: dict[str, Any]) -> float:
        return prompt_tokens(request["messages"])


def read_score(body: str) -> int | tuple[str, str]:
    """The score in the body of a chat completion, from 0 to `HIGHEST`, or code and message of what is wrong with it.

    The answer is untrusted, and reading it never raises.
    """
    written = read_text(body)
    if written.fault:
        return written.fault, written.message.removeprefix(f"{written.fault}: ")
    text, cut = written.text, written.cut
    if not text.strip():
        return "truncated" if cut else "empty", "the answer is empty"
    found = _in_json(text)
    if found is None and not cut:  # a score in text that was cut off may be another number
        found = _in_text(text)
    if found is None:
        return "truncated" if cut else "no_score", f"no score in {one_line(text, 120)!r}"
    number, most = found
    if most not in (None, HIGHEST) or not number.is_integer() or not 0 <= number <= HIGHEST:
        return "out_of_range", f"a score is a whole number from 0 to {HIGHEST}, not as in {one_line(text, 120)!r}"
    return int(number)


def _in_json(text: str) -> tuple[float, int | None] | None:
    """The score in an answer that is JSON, or almost."""
    begin, end = text.find("{"), text.rfind("}")
    if not 0 <= begin < end or len(text) > 100_000:
        return None
    try:
        data = json_repair.loads(_FENCE.sub("", text[begin : end + 1]))
    except (ValueError, RecursionError):
        return None
    value = data.get("score") if isinstance(data, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        match = _ALONE.fullmatch(value)
        return None if match is None else _number(match)
    try:
        return float(value), None
    except OverflowError:
        return None


def _in_text(text: str) -> tuple[float, int | None] | None:
    """The last score that is named in a text, or a text that is a number alone."""
    named = list(_NAMED.finditer(text))
    match = named[-1] if named else _ALONE.fullmatch(text.strip()) if len(text) < 100 else None
    return None if match is None else _number(match)


def _number(match: re.Match[str]) -> tuple[float, int | None]:
    return float(match[1]), None if match[2] is None else int(match[2][:9])


def ask(
    config: JudgeConfig, questions: Iterable[Question], parts: Parts, what: str, progress: Progress
) -> dict[Question, Score]:
    """The judge's answers. What is wrong with a single one is its reason.

    Args:
        parts: a folder of evaluate in the store in which answers are kept.
        what: what is judged, for messages.
        progress: called with the number of answers.

    Raises:
        FatalError: the spending cap would be exceeded, or the endpoint does not work. Paid answers are kept.
        InputError: the endpoint rejects the key, the model or the request.
    """
    listed = list(questions)
    digests = {path: file_digest(path) for q in listed for path in (q.picture, q.reference) if path is not None}
    numbers = {question: _journal_number(question, digests) for question in listed}
    slots = {number: question for question, number in numbers.items()}  # equal pictures are asked about once
    folder = f"evaluate/judge-{digest({**config.hashed(), 'reading': 1})[:16]}"
    ledger = open_ledger(partial(JudgeLedger, folder=folder), parts, config)
    ledger.journal.refresh()
    context = SourceContext(parts, range(1), False, progress)
    scores, faults = _filled(config, ledger, slots, context, what)
    lost = [message for code, message in faults.values() if code in FAULTS]
    if len(lost) > MOST_LOST * len(slots):
        raise FatalError(
            f"evaluate: judge: {len(lost)} of {len(slots)} questions about {what} got no answer ({lost[0]}); run again "
            "when the endpoint works, paid answers are kept"
        )
    if faults:
        example = next(iter(faults.values()))[1]
        _LOG.warning("evaluate: judge: %d of %d scores of %s are missing (%s)", len(faults), len(slots), what, example)
    said = {number: Score(score) for number, score in scores.items()}
    said |= {number: Score(None, code) for number, (code, _) in faults.items()}
    return {question: said[number] for question, number in numbers.items()}


def _filled(
    config: JudgeConfig, ledger: JudgeLedger, slots: Mapping[int, Question], context: SourceContext, what: str
) -> tuple[dict[int, int], dict[int, tuple[str, str]]]:
    """The scores, and code and message of what has none, by number in the journal."""
    scores: dict[int, int] = {}
    faults: dict[int, tuple[str, str]] = {}
    left = dict(slots)
    for _ in range(2):
        asker = QuestionAsker(config, left)
        work = Filling(config, ledger, asker, context, f"judge: {what}", dict.fromkeys(left, 0), len(left))
        try:
            work.fill()
        except Postponed as capped:
            raise FatalError(f"evaluate: {capped}") from None
        for slot, (number, score) in enumerate(zip(left, work.slots, strict=True)):
            faults.pop(number, None)
            if score is None:
                faults[number] = work.faults.get(slot, ("empty", "there is no answer"))
            else:
                scores[number] = score
        lost = {number for number, (code, _) in faults.items() if code in FAULTS}
        filtered = {n for n in faults.keys() - lost if not ledger.journal.has(Key(n, 0, 0, 0))}
        left = {number: slots[number] for number in slots if number in faults.keys() - filtered}
        # a request without an answer ended the rounds of the others; one that a filter rejects would do so again
        if not left or not (lost or filtered) or len(lost) > MOST_LOST * len(slots):
            break
    return scores, faults


def _journal_number(question: Question, digests: Mapping[Path, str]) -> int:
    """What a question's answers are kept under: 63 bits of a digest of all that is asked."""
    reference = None if question.reference is None else digests[question.reference]
    asked = [question.kind, digests[question.picture], reference, question.about]
    return int(digest(asked)[:16], 16) >> 1
