"""A trained network as something that runs without this package."""
