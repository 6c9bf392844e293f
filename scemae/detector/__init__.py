"""Landmark detectors: fit on annotated faces, predict, save and load; the heads, and what they learn from."""
