"""The networks: RSA, the Reference UNet and the BootPIG pipelines, and loaders for pretrained models."""
