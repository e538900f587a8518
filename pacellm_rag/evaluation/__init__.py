"""Measuring answers. Knows answers as text; knows nothing of models."""
