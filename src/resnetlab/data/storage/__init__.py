"""Decoded images: read, kept in memory or in a pack, and cut into squares and patches."""
