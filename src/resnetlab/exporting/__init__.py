"""A trained network as something that runs without torch or without this package."""
