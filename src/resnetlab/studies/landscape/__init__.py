"""The loss around a trained network (Li et al. 2018)."""
