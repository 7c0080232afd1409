"""The `bootpig` command."""
