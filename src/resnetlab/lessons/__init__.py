"""Exercises: files with gaps that `learn` writes and `check` answers."""
