"""What users trigger: the Prefect flows and the command line. Only wires what `stages` does."""
