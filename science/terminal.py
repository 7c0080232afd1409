"""Shows table 1 and the verdicts in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from science.results import Results
from science.statements import OUR_STATEMENTS, STATEMENTS
from science.tables import Rows, table_1_rows, verdict_rows


def show(results: Results, console: Console | None = None) -> None:
    """Print them to `console`, or to the standard output."""
    console = console or Console()
    console.print(_table("Table 1", table_1_rows(results)))
    for title, statements in (("The paper's statements", STATEMENTS), ("Our own statements", OUR_STATEMENTS)):
        rows = verdict_rows(statements, results)
        console.print(_table(title, [[row[0], *row[2:-1], row[-1].strip("*")] for row in rows]))


def _table(title: str, rows: Rows) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, name in enumerate(rows[0]):
        table.add_column(name, overflow="fold", no_wrap=number > 0)
    for row in rows[1:]:
        table.add_row(*row)
    return table
