"""Finding, downloading and loading pretrained models."""
