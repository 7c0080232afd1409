"""BootPIG's networks: Reference Self-Attention, the Reference UNet, and the module that is trained."""
