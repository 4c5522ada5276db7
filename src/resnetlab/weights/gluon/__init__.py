"""Weights of Gluon (MXNet), read and written without MXNet."""
