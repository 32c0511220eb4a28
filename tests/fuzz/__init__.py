"""Seeded fuzzers: random programs, the same for the same seed, run on a reference and on tideloop."""
