"""Reads a Perfetto trace as its importer does, as far as the emulator's traces need it, into tables one can query.

trace_processor sorts packets by time (those of one time stay in order), keeps a stack of open slices for each track, and
lets a flow lead from each event that names it to the next one that does, until it is terminated.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent


@dataclass
class Slice:
    """``dur`` is 0 for an instant. ``parent`` is the slice that was open on the track."""

    id: int
    ts: int
    dur: int
    name: str
    category: str
    track: str
    parent: Slice | None
    args: dict[str, Any]


@dataclass
class Imported:
    slices: list[Slice] = field(default_factory=list)
    flows: list[tuple[Slice, Slice]] = field(default_factory=list)
    dangling: list[Slice] = field(default_factory=list)
    """Begins of flows that lead nowhere."""
    tracks: list[str] = field(default_factory=list)
    """Paths, as ``run / VM 0 / vCPU 1``."""
    in_order: bool = True

    def named(self, name: str) -> list[Slice]:
        return [one for one in self.slices if one.name == name]

    def query(self, sql: str) -> list[Any]:
        """``sql`` over tables ``slice``, ``flow`` and ``track``, with EXTRACT_ARG."""
        with sqlite3.connect(":memory:") as db:
            db.create_function("EXTRACT_ARG", 2, lambda of, key: self.slices[of].args.get(key.removeprefix("debug.")))
            db.execute("CREATE TABLE slice (id, ts, dur, name, category, track, parent_id, arg_set_id)")
            db.execute("CREATE TABLE flow (slice_out, slice_in)")
            for one in self.slices:
                row = (one.id, one.ts, one.dur, one.name, one.category, one.track)
                db.execute("INSERT INTO slice VALUES (?,?,?,?,?,?,?,?)", (*row, one.parent and one.parent.id, one.id))
            db.executemany("INSERT INTO flow VALUES (?, ?)", [(one.id, other.id) for one, other in self.flows])
            return db.execute(sql).fetchall()


def read(data: bytes) -> Imported:
    """Import a trace. Fails if a slice ends that did not begin, or a track is used that was not described."""
    trace = Trace.FromString(data)
    found = Imported()
    names: dict[int, str] = {}
    for packet in trace.packet:
        if packet.HasField("track_descriptor"):
            track = packet.track_descriptor
            above = f"{names[track.parent_uuid]} / " if track.parent_uuid else ""
            assert track.uuid not in names, "a track described twice"
            names[track.uuid] = above + track.name
    found.tracks = list(names.values())
    packets = [packet for packet in trace.packet if packet.HasField("track_event")]
    times = [packet.timestamp for packet in packets]
    found.in_order = times == sorted(times)
    open_slices: defaultdict[int, list[Slice]] = defaultdict(list)
    flows: dict[int, Slice] = {}
    for packet in sorted(packets, key=lambda packet: packet.timestamp):
        event = packet.track_event
        stack = open_slices[event.track_uuid]
        if event.type == TrackEvent.TYPE_SLICE_END:
            ended = stack.pop()
            ended.dur = packet.timestamp - ended.ts
            continue
        one = Slice(
            id=len(found.slices),
            ts=packet.timestamp,
            dur=0 if event.type == TrackEvent.TYPE_INSTANT else -1,
            name=event.name,
            category=event.categories[0],
            track=names[event.track_uuid],
            parent=stack[-1] if stack else None,
            args={note.name: getattr(note, note.WhichOneof("value")) for note in event.debug_annotations},
        )
        found.slices.append(one)
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            stack.append(one)
        for flow in event.flow_ids:
            if flow in flows:
                found.dangling.append(flows[flow])
            flows[flow] = one
        for flow in event.terminating_flow_ids:
            found.flows.append((flows.pop(flow), one))
    found.dangling += flows.values()
    return found
