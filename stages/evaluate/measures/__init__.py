"""The measures of an evaluation: what each compares, with which models. See docs/evaluation.md."""
