"""Reads all pictures and masks that users give."""
