"""The page that tells a run's story."""
