"""One of the further processes of a reduce stage that `ranks` starts: `python -m bootpig.stages.engine.rank STAGE`."""

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


def main(stage: str) -> int:
    """Run a stage as the rank of the environment. The first line of standard input is the configuration."""
    config = PipelineConfig.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        report = Engine(config).run_reduce(stage)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    if report.state == "failed":
        print(report.message, file=sys.stderr)
    return int(report.state == "failed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
