"""Speed of the vCPU's engine against Unicorn itself (``engine_speed`` measures)."""

from __future__ import annotations

from tests.bench.figure import Figure, Target


def engine_mips() -> list[Figure]:
    """Counting and paging as in a run, against Unicorn with its virtual TLB and no block hook."""
    from tests.bench.engine_speed import loop_speeds

    return [
        Figure(
            f"engine, {speed.name}",
            f"{speed.engine_mips:,.0f} MIPS",
            speed.ratio,
            f"Unicorn, {speed.plain_mips:,.0f}",
        )
        for speed in loop_speeds()
    ]


def tlb_misses() -> list[Figure]:
    """The native hook against a Python callback."""
    from tests.bench.engine_speed import tlb_misses_per_second

    native, python = tlb_misses_per_second()
    figure, against = f"{native / 1e6:.1f} M/s", f"Python callback, {python / 1e6:.2f} M/s"
    return [Figure("TLB misses", figure, native / python, against, Target(15, ">="))]
