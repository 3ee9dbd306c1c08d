"""Data sources, and how their examples are split, standardized and ordered."""
