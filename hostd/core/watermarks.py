"""The host's free memory: watermarks below which somebody reclaims, for hosts that have less memory than their groups.

Follows mm/page_alloc.c:__setup_per_zone_wmarks, for one zone that is all of the host's memory: min_free_kbytes is
sqrt(16 * lowmem_kbytes), within 128 to 262144 (calculate_min_free_kbytes); the gap between the marks is the larger of a
quarter of min and watermark_scale_factor = 10 ten-thousandths of the zone. Below ``low`` kswapd is woken and reclaims
until ``high`` (mm/vmscan.c:pgdat_balanced); below ``min`` whoever allocates reclaims first.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

_KB_A_PAGE = 4
_MIN_FREE_KB = (128, 262_144)
_SCALE = (10, 10_000)


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Free pages. All 0 for a host without a limit of its own."""

    min: int = 0
    low: int = 0
    high: int = 0

    @classmethod
    def of(cls, managed: int) -> Watermarks:
        """Of a host with ``managed`` pages."""
        if not managed:
            return cls()
        least, most = _MIN_FREE_KB
        min_pages = max(least, min(isqrt(16 * managed * _KB_A_PAGE), most)) // _KB_A_PAGE
        gap = max(min_pages // 4, managed * _SCALE[0] // _SCALE[1], 1)
        return cls(min_pages, min_pages + gap, min_pages + 2 * gap)
