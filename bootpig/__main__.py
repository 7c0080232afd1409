"""`python -m bootpig`: the `bootpig` command, for launchers such as torchrun."""

from bootpig.flows.cli.main import entry

entry()
