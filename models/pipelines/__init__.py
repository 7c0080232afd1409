"""BootPIG's diffusers pipelines."""
