"""The register file as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apf import registers

values = st.dictionaries(st.sampled_from(registers.NAMES), st.integers(0, (1 << 128) - 1))


@given(first=values, second=values)
def test_new_replace_and_get(first: dict[str, int], second: dict[str, int]) -> None:
    file = registers.replace(registers.new(**first), **second)
    assert len(file) == registers.FILE_BYTES
    reset = {"rflags": 0x202, "mxcsr": 0x1F80, "fpcw": 0x37F, "fptag": 0xFFFF}
    for name in registers.NAMES:
        assert registers.get(file, name) == {**reset, **first, **second}.get(name, 0)


@pytest.mark.parametrize("call", [lambda: registers.new(rzz=1), lambda: registers.get(registers.new(), "eax")])
def test_unknown_names(call: object) -> None:
    with pytest.raises(KeyError):
        call()


@pytest.mark.parametrize("value", [-1, 1 << 128])
def test_values_that_do_not_fit(value: int) -> None:
    with pytest.raises(OverflowError):
        registers.new(rax=value)
