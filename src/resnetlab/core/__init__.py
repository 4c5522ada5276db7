"""What every layer stands on: errors, randomness, files, preprocessing, the run folder."""
