"""The Prefect flows and the command line. They only wire the stages together; the work is done in `stages`."""
