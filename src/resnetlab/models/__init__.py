"""Networks of the residual family, built from one configuration, with surgery and summaries."""
