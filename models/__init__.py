"""The networks: RSA, the Reference UNet and the BootPIG pipelines, and loaders for pretrained models."""

import logging

# peft imports bitsandbytes if it is installed, which on some CPUs warns that it lacks a kernel for 4-bit inference
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
