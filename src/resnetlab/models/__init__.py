"""The residual family from one definition."""
