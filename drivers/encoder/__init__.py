"""Encoders: models that read a text whole, in both directions, and only make vectors of it."""
