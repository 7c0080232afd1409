"""The journal of pictures from an endpoint: small entries, and each picture in a file of its own.

All entries are read to know what was spent, so they must stay small; a picture is read when its unit is made.
"""

from __future__ import annotations

import json
from dataclasses import replace

from bootpig.stages.caption.llm.journal import Journal, Key, Record
from bootpig.stages.caption.llm.ledger import Ledger
from bootpig.stages.synthesize.answers import decoded, is_answer, read_images
from bootpig.stages.synthesize.endpoint import ImagesConfig
from bootpig.storage.jsonio import parse_json
from bootpig.storage.parts import Parts


class PictureJournal(Journal):
    """A journal whose pictures are files of their own."""

    def is_answer(self, body: str) -> bool:
        return is_answer(body)

    def keep(self, key: Key, record: Record) -> Record:
        """Write an answer. Its picture is written first, as it is, and named in the entry in place of the base64."""
        answer = read_images(record.body)
        if answer.code == "content_filter":
            record = replace(record, asked=0)
        if answer.base64 and (picture := decoded(answer.base64)) is not None:
            self.keep_picture(key, picture)
            data = parse_json(record.body)
            data["data"] = [{**data["data"][0], "url": None, "b64_json": {"file": self._picture(key)}}]
            record = replace(record, body=json.dumps(data, ensure_ascii=False))
        return super().keep(key, record)

    def keep_picture(self, key: Key, picture: bytes) -> None:
        self.root.write(f"{self.folder}/{self._picture(key)}", picture)

    def picture(self, key: Key) -> bytes:
        """The picture of an answer. Raises FileNotFoundError."""
        return self.root.read(f"{self.folder}/{self._picture(key)}")

    @staticmethod
    def _picture(key: Key) -> str:
        return f"pictures/{key.name.removesuffix('.json')}"


class PictureLedger(Ledger):
    """The journal of pictures, and what was spent."""

    journal: PictureJournal

    def __init__(self, parts: Parts, config: ImagesConfig, folder: str) -> None:
        self._folder = folder
        super().__init__(parts, config)

    def open_journal(self) -> PictureJournal:
        return PictureJournal(self.parts.root, self.journal_folder())

    def journal_folder(self) -> str:
        return self._folder
