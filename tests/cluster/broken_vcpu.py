"""``python broken_vcpu.py FILES WHAT``: attach to a hostd as vCPU 0 and break the contract as WHAT says."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import grpc

from apf.rundir import RunDir
from apf.scenario import load
from apf.v1 import host_pb2, types_pb2

Request = host_pb2.RunVcpuRequest
RIGHT = {"gfn": 1, "access": 1, "mode": 1}


def fault(seq: int = 1, **fields: int) -> bytes:
    return bytes(Request(seq=seq, fault=host_pb2.FaultRaised(**{**RIGHT, **fields})).SerializeToString())


def main() -> None:
    files, what = Path(sys.argv[1]), sys.argv[2]
    attach = types_pb2.Attach(scenario_digest=load(None, {"apf": ["pv2010"]}).fingerprint())
    wrong = {
        "seq": [fault(seq=7)],
        "garbage": [b"\xff" * 20],
        "huge": [bytes(4097)],
        "enum": [fault(access=99)],
        "leave": [],
        "cancel": [],
    }[what]
    path = RunDir(files, files).host_address
    deadline_s = time.monotonic() + 30
    while not Path(path.removeprefix("unix:")).exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    with grpc.insecure_channel(path) as channel:
        sent = [Request(attach=attach).SerializeToString(), *wrong]
        call = channel.stream_stream("/apf.v1.HostService/RunVcpu")(iter(sent), wait_for_ready=True, timeout=30)
        next(call)
        if what == "cancel":
            call.cancel()
            return
        assert what == "leave" or call.code() in {
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        }, call.code()


if __name__ == "__main__":
    main()
