"""Ratings of samples by a vision model behind an OpenAI-compatible endpoint."""
