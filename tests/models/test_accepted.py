"""docs/models.md has the tables that the code makes."""

from __future__ import annotations

from bootpig.models.accepted import DOCS, TABLES, filled


def test_the_tables_in_the_docs_are_those_of_the_code() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        assert f"<!-- {name} -->\n{table()}\n<!-- end of {name} -->" in text, "python -m bootpig.models.accepted"
    assert filled(text) == text


def test_every_accepted_family_has_a_row() -> None:
    from bootpig.models.painters.families import FAMILIES

    rows = TABLES["painters"]().splitlines()
    assert len(rows) == len(FAMILIES) + 2
    assert all(row.count("|") == rows[0].count("|") for row in rows)
