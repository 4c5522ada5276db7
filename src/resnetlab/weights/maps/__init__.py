"""Weights of other libraries: one two-way map of names a file."""
