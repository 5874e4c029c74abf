"""Daemons started by hand: what they log, and by whose request."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest
from cluster_runs import DEADLINE_S
from daemons import COMMANDS, Daemons, terminate

from apf.v1 import load_pb2, load_pb2_grpc

pytestmark = pytest.mark.grpc


def test_two_vms_log_json_with_request_ids(short_path: Path) -> None:
    daemons = Daemons(short_path, vms=2)
    api = f"unix:{short_path / 'api.sock'}"
    try:
        for name in COMMANDS:
            options = ["--api", api] if name == "guest-1" else []
            daemons.start(name, "--log-format", "json", "--log-level", "INFO", *options)
        daemons.until_windows()
        with grpc.insecure_channel(api) as channel:
            service = load_pb2_grpc.LoadServiceStub(channel)
            with pytest.raises(grpc.RpcError) as refused:
                service.Spawn(
                    load_pb2.SpawnRequest(program="nonsense"),
                    metadata=[("x-request-id", "mine-7")],
                    timeout=DEADLINE_S,
                )
            assert ("x-request-id", "mine-7") in [tuple(item) for item in refused.value.trailing_metadata()]
            spawned = service.Spawn(
                load_pb2.SpawnRequest(name="p", access_threads=1, memory=1 << 20), timeout=DEADLINE_S
            )
            for page in range(20):
                access = load_pb2.AccessRequest(process=spawned.process, page=page, kind=1)
                service.Access(access, timeout=DEADLINE_S)
        terminate(daemons.running["vcpud-0"])
        assert {name: daemons.ends(name) for name in COMMANDS} == {
            name: 143 if name == "vcpud-0" else 1 for name in COMMANDS
        }
        lines = {name: [json.loads(line) for line in daemons.log(name).splitlines()] for name in COMMANDS}
    finally:
        for daemon in daemons.running.values():
            daemon.kill()
            daemon.wait()
    for name, said in lines.items():
        assert all(set(line) - {"request_id"} == {"time", "level", "process", "logger", "message"} for line in said)
        assert {line["process"] for line in said} <= {name, f"vcpu-{name[-1]}-0", f"vcpu-{name[-1]}-1"}
        assert len(said) < 12, "something is logged too often"
    calls = [line for line in lines["guest-1"] if line["logger"] == "guestsched.call_log"]
    assert [line["request_id"] for line in calls] == ["mine-7", "guest-1-1"], "no line for an access"
    assert calls[0]["message"].startswith("Spawn: INVALID_ARGUMENT: program = 'nonsense'")
    assert calls[1]["message"].startswith("Spawn: OK, ")
    assert all("request_id" not in line for line in lines["hostd"])
