"""Interpreters that exit with work in flight."""
