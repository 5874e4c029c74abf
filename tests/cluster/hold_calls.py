"""A load that ends while the run goes on.

``python hold_calls.py ADDRESS`` makes accesses by each kind of call, says what came of them as a line of JSON, waits for
a line, and asks for the end of the run.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

import grpc
from load_calls import READ, WRITE, access, error_of, replay, seen, stream

from apf.v1 import load_pb2 as load
from apf.v1.load_pb2_grpc import LoadServiceStub

PAGES = 1536
ALONE, STREAMED, REPLAYED = 150, 600, 1500


async def main(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = LoadServiceStub(channel)
        met: Counter[str] = Counter()
        latencies_ns = []
        answers = [seen(await stub.Access(access(n * 613 % PAGES, WRITE))) for n in range(ALONE)]
        mixed = [access(n * 37 % PAGES, WRITE if n % 3 else READ) for n in range(STREAMED)]
        answers += (await stream(stub, mixed, 24)).values()
        for answer in answers:
            met[answer["met"]] += 1
            latencies_ns.append(answer["latency_ns"])
        items = [load.ReplayRequest.Item(page=n * 11 % PAGES, write=bool(n % 2)) for n in range(REPLAYED)]
        met.update((await replay(stub, items))["met"])
        refused = await error_of(stub.Access(access(10**6)))
        print(json.dumps({"met": met, "latencies_ns": latencies_ns, "refused": refused}), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await stub.Shutdown(load.ShutdownRequest())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
