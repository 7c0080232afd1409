"""One of the further processes of a reduce stage that `ranks` starts: `python -m …engine.rank STAGE [--force]`."""

from __future__ import annotations

import os
import signal
import sys
import threading

from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine


def _end_with_parent() -> None:
    """The parent keeps our standard input open while it lives."""
    while sys.stdin.buffer.read(1):
        pass
    os._exit(128 + signal.SIGTERM)


def main(stage: str, force: bool) -> int:
    """Run a stage as the rank of the environment. The first line of standard input is the configuration."""
    config = PipelineConfig.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        report = Engine(config).run_reduce(stage, force=force)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    if report.state == "done":
        return 0
    # rank 0 found that there is something to make, and waits for this rank
    print(report.message or f"{stage}: another run has published the result meanwhile", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--force" in sys.argv[2:]))
