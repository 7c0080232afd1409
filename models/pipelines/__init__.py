"""BootPIG as diffusers pipelines."""
