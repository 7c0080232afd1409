"""The train stage: trains the Reference UNet and the RSA layers."""
