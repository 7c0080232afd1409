"""`bootpig --print-completion bash|zsh`: a script that completes commands, options, stages and shipped configurations.

Made by shtab from the parser: such a script needs no Python, while typer and argcomplete would start this program at
each TAB, which takes most of a second. typer would also add about a tenth of a second to every start.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

SHELLS = ("bash", "zsh")

_CONFIG = "_bootpig_config_files"


class PrintCompletion(argparse.Action):
    """Prints the script for the shell that is named, and ends the program."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        print(completion_script(parser, str(values)))
        parser.exit()


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of `parser` for one of `SHELLS`. The parser is changed: use it for nothing else."""
    import shtab

    from bootpig.flows.loading import shipped_configs
    from bootpig.stages.registry import STAGES

    names = " ".join(shipped_configs())
    config = {
        "bash": _CONFIG,
        "zsh": _CONFIG,
        "preamble": {
            "bash": f"{_CONFIG}() {{\n"
            f'  compgen -W "{names}" -- "$1"\n'
            "  compgen -f -X '!*.yaml' -- \"$1\"\n"
            '  compgen -d -- "$1"\n'
            "}",
            "zsh": f"{_CONFIG}() {{\n  compadd {names}\n  _files -g '*.yaml'\n}}",
        },
    }
    for action in _actions(parser):
        if action.metavar == "STAGE":
            action.choices = list(STAGES)
        elif action.metavar == "NAME":
            action.choices = list(shipped_configs())
        elif action.metavar == "CONFIG":
            action.complete = config  # type: ignore[attr-defined]
        elif action.metavar in ("FILE", "PICTURE", "PNG"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in ("FOLDER", "MODEL", "URL"):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The actions of a parser and of all below it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
        else:
            yield action
