"""Captions from an LLM behind an OpenAI-compatible endpoint."""
