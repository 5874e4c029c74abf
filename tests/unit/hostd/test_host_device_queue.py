"""The device's queue against queueing theory, and against another simulator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hostd.core.device import Device, DeviceProfile, Op

SERVICE_NS = 100_000
ARRIVALS = 400_000


def arrivals_ns(load: float, count: int, seed: int) -> list[int]:
    """A Poisson process that keeps one server of SERVICE_NS busy for a part ``load`` of the time."""
    gaps = np.random.default_rng(seed).exponential(SERVICE_NS / load, count)
    return [int(at_ns) for at_ns in np.cumsum(gaps)]


def device(servers: int, least_ns: int, most_ns: int, seed: int = 1) -> Device:
    """Service times are uniform."""
    return Device(DeviceProfile("test", servers, True, 1, (least_ns, most_ns), (least_ns, most_ns), 0, 0, 0), seed)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
@pytest.mark.parametrize(
    ("least_ns", "most_ns"), [(SERVICE_NS, SERVICE_NS), (SERVICE_NS // 10, SERVICE_NS * 19 // 10)]
)
def test_waiting_at_one_server_is_what_the_formula_says(load: float, least_ns: int, most_ns: int) -> None:
    """Pollaczek and Khinchine: mean wait = rate x E[S**2] / (2 (1 - load)); M/D/1's for a constant service time S.

    The mean of so many waits, each of which resembles those before it, differs by about 1 % between seeds.
    """
    queue = device(1, least_ns, most_ns)
    waits = [queue.submit(Op.READ, 0, at_ns)[0] - at_ns for at_ns in arrivals_ns(load, ARRIVALS, 7)]
    square = (least_ns**2 + least_ns * most_ns + most_ns**2) / 3
    assert sum(waits) / ARRIVALS == pytest.approx(load / SERVICE_NS * square / (2 * (1 - load)), rel=0.02)
    if least_ns == most_ns:
        assert sum(waits) / ARRIVALS == pytest.approx(load * SERVICE_NS / (2 * (1 - load)), rel=0.02)


@pytest.mark.parametrize("load", [0.5, 2.4])
def test_waiting_at_several_servers_is_what_erlang_says(load: float) -> None:
    """Three servers (M/M/3): mean wait = C S / (3 - load), C by Erlang's formula; the service is exponential."""
    shares = np.arange(4096) / 4096
    table = np.maximum(1, -SERVICE_NS * np.log1p(-shares)).astype(int).tolist()
    # The last part is uniform; so that it keeps the exponential's mean there.
    table.append(table[-1] + 2 * SERVICE_NS)
    queue = Device(DeviceProfile("test", 3, True, 1, tuple(table), (1, 1), 0, 0, 0), 1)
    waits = [queue.submit(Op.READ, 0, at_ns)[0] - at_ns for at_ns in arrivals_ns(load, ARRIVALS, 11)]
    all_busy = load**3 / 6 * 3 / (3 - load)
    erlang = all_busy / (1 + load + load**2 / 2 + all_busy)
    assert sum(waits) / ARRIVALS == pytest.approx(erlang * SERVICE_NS / (3 - load), rel=0.05)


@pytest.mark.parametrize("servers", [1, 3])
def test_every_io_starts_and_ends_when_simpy_says(servers: int) -> None:
    simpy = pytest.importorskip("simpy")
    queue = device(servers, SERVICE_NS // 10, SERVICE_NS * 19 // 10)
    came_ns = arrivals_ns(0.9 * servers, 3000, 5)
    ours = [queue.submit(Op.READ, 0, at_ns) for at_ns in came_ns]
    environment = simpy.Environment()
    resource = simpy.Resource(environment, servers)
    theirs: list[Any] = [None] * len(came_ns)

    def one(number: int) -> Iterator[Any]:
        yield environment.timeout(came_ns[number])
        with resource.request() as request:
            yield request
            start_ns = environment.now
            yield environment.timeout(ours[number][1] - ours[number][0])
            theirs[number] = (start_ns, environment.now)

    for number in range(len(came_ns)):
        environment.process(one(number))
    environment.run()
    assert theirs == ours
    assert any(start_ns > at_ns for (start_ns, _), at_ns in zip(ours, came_ns, strict=True))
