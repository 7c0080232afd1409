"""A key out of a Prefect Secret block, put where a stage looks for it: into its environment variable."""

from __future__ import annotations

import os

from prefect.blocks.system import Secret

from bootpig.stages.config import PipelineConfig


def export_key(config: PipelineConfig) -> None:
    """Read the block `caption.openai.api_key_secret` into the variable `api_key_env`, unless that is set.

    A block that is not there is no error yet: captions that are complete need no key, and the stage says which one it
    misses.
    """
    llm = config.caption.openai
    if llm is None or llm.api_key_secret is None or llm.api_key_env is None or os.environ.get(llm.api_key_env):
        return
    try:
        block = Secret.load(llm.api_key_secret)
    except ValueError:
        return
    assert isinstance(block, Secret)
    os.environ[llm.api_key_env] = str(block.get())
