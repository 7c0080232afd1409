"""The select stage: chooses the samples to train on."""
