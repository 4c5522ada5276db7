"""Lessons and exercises: notebooks that `learn` writes, and files with gaps, which `check` answers."""
