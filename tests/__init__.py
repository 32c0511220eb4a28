"""Tests of tideloop. What holds for any asyncio event loop runs on every backend: see `backends.py`."""
