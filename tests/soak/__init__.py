"""Loads of a size that shows growth: many tasks alive, many cancelled, many lives."""
