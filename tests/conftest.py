"""What holds for all tests: Hypothesis judges results, not how long they took on a busy machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
