"""Experiments: the paper's tables and figures again, in the toy world. `make science` runs them."""

from pathlib import Path

WORK = Path("work/science")
"""Where subjects and the models of other methods are made, relative to the repository."""
