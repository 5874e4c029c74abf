"""Where an image keeps its compiled hooks: numba's cache, filled when the image is built and only read afterwards.

Numba takes a cache directory only if it can write there, also to read from it. An image's root file system is read-only
at run time, so without help a daemon refuses to start ("no locator available"). Numba lets one name the classes that
look for the cache (``NUMBA_CACHE_LOCATOR_CLASSES``); an image names the class below once its cache is full. Cached code
belongs to a CPU's name and features, so an image also compiles for the plain x86-64 that all CPUs are
(``NUMBA_CPU_NAME=generic``): it does not matter where it was built.
"""

# numba has no types here.
# mypy: disable-error-code="misc"

from __future__ import annotations

from numba.core.caching import UserProvidedCacheLocator


class ReadOnlyCacheLocator(UserProvidedCacheLocator):
    """Finds what is in ``NUMBA_CACHE_DIR``; that something is missing there is an error."""

    _looked = False

    def ensure_cache_path(self) -> None:
        """Numba calls this before it looks into the directory, and again before it saves what it did not find there."""
        if self._looked:
            raise RuntimeError(
                f"{self._py_file}: its compiled functions are not in {self.get_cache_path()}; the image was built from "
                f"another source, for another CPU (NUMBA_CPU_NAME) or with another numba: build it again"
            )
        self._looked = True
