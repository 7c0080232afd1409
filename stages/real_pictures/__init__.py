"""The pictures stage: real pictures in place of caption and synthesize."""
