"""What every study shares: plan, trainings, measurements, verdict and page."""
