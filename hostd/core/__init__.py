"""The host kernel's mm as a deterministic core: no I/O, clock, threads or randomness of its own.

Where to read first: ``events`` (what goes in and out, and in which order), ``page`` (the life of a guest page),
``fault`` (what an EPT violation does), ``border`` (what happens between two windows), ``host`` (the core itself).
"""
