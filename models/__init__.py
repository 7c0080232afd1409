"""Networks: RSA, the Reference UNet, the BootPIG pipelines, and the loaders of the models around them."""
