"""Text-to-image pipelines of diffusers, each called as its family needs it."""
