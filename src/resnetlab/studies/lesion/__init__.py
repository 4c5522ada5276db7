"""Networks without one of their blocks (Veit et al. 2016)."""
