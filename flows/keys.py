"""Copies an API key from a Prefect Secret block into the environment variable that the caption stage reads."""

from __future__ import annotations

import os

from prefect.blocks.system import Secret

from bootpig.stages.config import PipelineConfig


def export_key(config: PipelineConfig) -> None:
    """Copy the block `caption.openai.api_key_secret` into the variable `api_key_env`, unless that is already set.

    A missing block is not an error here: complete captions need no key, and the stage reports a key that it needs.
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
