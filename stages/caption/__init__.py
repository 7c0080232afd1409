"""The caption stage: caption sources, duplicate detection, and the LLM client."""
