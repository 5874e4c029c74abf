"""A trace in Perfetto's format, streamed: tracks, slices, instants and flows, written in the order of time.

Theory. Perfetto's importer reads a sequence of packets; each is a track's description or an event of a track at a
time. What is known ahead of its time (the end of an I/O that was settled when it was submitted) is held in a heap until
``advance`` says that nothing earlier will come, so the file is in order, and what is held is no more than what is under
way. Events of one time and track stay in the order in which they were told: a slice that begins where another ends does
not become its child.

Limit. A file stops growing at ``limit`` bytes: the slices that are open then end there, an instant on a track of its own
says so, and whatever comes later is counted (``left_out``), not written.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import BinaryIO

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackDescriptor, TrackEvent
from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder

_SEQUENCE = 1
_ADDRESSES = frozenset(("address", "gva", "rip"))

Value = int | str


class TraceFile:
    """Writes packets to ``out``, about ``limit`` bytes at the most. ``written`` bytes there are so far."""

    def __init__(self, out: BinaryIO, limit: int) -> None:
        self._out = out
        self._builder = StreamingTraceProtoBuilder(out)
        self._limit = limit
        self._first = out.tell()
        self._tracks = 0
        self._held: list[tuple[int, int, TrackEvent]] = []
        self._order = 0
        self._open: dict[int, int] = {}
        """Slices that are open, by track."""
        self.events = 0
        """Slices and instants written."""
        self.left_out = 0
        """Slices and instants that the limit kept out."""
        self.cut_ns: int | None = None
        """Guest time at which the limit was reached."""

    @property
    def written(self) -> int:
        """Bytes so far."""
        return self._out.tell() - self._first

    def track(self, name: str, parent: int = 0, rank: int = 0) -> int:
        """A new track (or group of tracks) below ``parent``, in the order of ``rank``; returns its uuid."""
        self._tracks += 1
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        descriptor = packet.track_descriptor
        descriptor.uuid = self._tracks
        descriptor.name = name
        descriptor.child_ordering = TrackDescriptor.EXPLICIT
        descriptor.sibling_order_rank = rank
        if parent:
            descriptor.parent_uuid = parent
        if self.cut_ns is None:
            self._builder.write_packet(packet)
        return self._tracks

    def begin(self, at_ns: int, track: int, name: str, category: str, **values: Value) -> None:
        """A slice begins; it is the child of the one that is open on its track."""
        self._hold(at_ns, _event(TrackEvent.TYPE_SLICE_BEGIN, track, name, category, values))

    def end(self, at_ns: int, track: int) -> None:
        """The last slice that began on ``track`` ends."""
        self._hold(at_ns, TrackEvent(type=TrackEvent.TYPE_SLICE_END, track_uuid=track))

    def instant(self, at_ns: int, track: int, name: str, category: str, **values: Value) -> None:
        """Something happens."""
        self._hold(at_ns, _event(TrackEvent.TYPE_INSTANT, track, name, category, values))

    def flow(self, at_ns: int, track: int, name: str, category: str, flow: int, ends: bool, **values: Value) -> None:
        """An instant at which ``flow`` begins or ends: an arrow from the one to the other. An id may be used again."""
        event = _event(TrackEvent.TYPE_INSTANT, track, name, category, values)
        (event.terminating_flow_ids if ends else event.flow_ids).append(flow)
        self._hold(at_ns, event)

    def advance(self, now_ns: int) -> None:
        """Nothing before ``now_ns`` will be told any more."""
        while self._held and self._held[0][0] < now_ns:
            at_ns, _, event = heappop(self._held)
            self._write(at_ns, event)

    def finish(self, end_ns: int) -> None:
        """A run is over at ``end_ns``: what was to come later does not, and what is open ends. Times may begin anew."""
        self.advance(end_ns + 1)
        self._held.clear()
        self._close(end_ns)

    def _hold(self, at_ns: int, event: TrackEvent) -> None:
        self._order += 1
        heappush(self._held, (at_ns, self._order, event))

    def _write(self, at_ns: int, event: TrackEvent) -> None:
        ends = event.type == TrackEvent.TYPE_SLICE_END
        if self.cut_ns is None and not ends and self.written >= self._limit:
            self._cut(at_ns)
        if self.cut_ns is not None:
            self.left_out += not ends
            return
        if event.type != TrackEvent.TYPE_INSTANT:
            depth = self._open.get(event.track_uuid, 0) + (-1 if ends else 1)
            assert depth >= 0, f"a slice of track {event.track_uuid} ends at {at_ns} that did not begin"
            self._open[event.track_uuid] = depth
        self.events += not ends
        self._put(at_ns, event)

    def _cut(self, at_ns: int) -> None:
        self._close(at_ns)
        told = self.track("trace cut short")
        text = f"limit of {self._limit} bytes reached"
        self._put(at_ns, _event(TrackEvent.TYPE_INSTANT, told, text, "trace", {}))
        self.cut_ns = at_ns

    def _close(self, at_ns: int) -> None:
        for track, depth in self._open.items():
            for _ in range(depth):
                self._put(at_ns, TrackEvent(type=TrackEvent.TYPE_SLICE_END, track_uuid=track))
        self._open.clear()

    def _put(self, at_ns: int, event: TrackEvent) -> None:
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        packet.timestamp = at_ns
        packet.track_event.CopyFrom(event)
        self._builder.write_packet(packet)


def _event(
    kind: TrackEvent.Type.ValueType, track: int, name: str, category: str, values: dict[str, Value]
) -> TrackEvent:
    event = TrackEvent(type=kind, track_uuid=track, name=name, categories=(category,))
    for key, value in values.items():
        annotation = event.debug_annotations.add(name=key)
        if isinstance(value, str):
            annotation.string_value = value
        elif key in _ADDRESSES:
            annotation.pointer_value = value
        else:
            annotation.int_value = value
    return event
