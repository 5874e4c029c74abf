"""Benchmarks: each figure is a ratio within one run, since absolute ones only describe a machine."""
