"""The table of roles and methods: complete, and kept at real sockets for every role and method."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from everything import serving, status
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from apf import roles
from apf.listen import sockets
from apf.roles import Role
from apf.rundir import RunDir
from apf.v1 import guest_pb2, host_pb2, load_pb2

pytestmark = pytest.mark.grpc

OK, DENIED = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED
FILES = (host_pb2, guest_pb2, load_pb2, health_pb2, reflection_pb2)


def test_every_method_is_in_the_table() -> None:
    there = {
        f"/{service.full_name}/{method.name}"
        for file in FILES
        for service in descriptor_pool.Default().FindFileByName(file.DESCRIPTOR.name).services_by_name.values()
        for method in service.methods
    }
    assert there <= set(roles.METHODS)
    assert {method for method in roles.METHODS if "/apf.v1." in method} <= there


def test_who_steers_is_the_operator() -> None:
    for method in ("Spawn", "Kill", "Inject", "Shutdown"):
        assert roles.METHODS[f"/apf.v1.LoadService/{method}"] == {Role.OPERATOR}
    assert roles.methods_of({Role.VCPU}) & roles.methods_of({Role.OPERATOR}) == roles.methods_of({Role.GUEST}) & (
        roles.methods_of({Role.LOAD})
    )
    assert not roles.may(Role, "/apf.v1.LoadService/Forgotten")


@pytest.mark.parametrize("role", Role)
def test_matrix(role: Role, tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            serving(sockets(RunDir(tmp_path, tmp_path), "d", [role])) as (everything, (address,)),
            grpc.aio.insecure_channel(address) as channel,
        ):
            for method, allowed in roles.METHODS.items():
                everything.called.clear()
                code, text = await status(channel, method)
                if role in allowed:
                    assert (code, everything.called) == (OK, [method])
                else:
                    assert (code, everything.called) == (DENIED, []), method
                    assert method in text and role in text and all(one in text for one in allowed)
            everything.called.clear()
            code, text = await status(channel, "/apf.v1.LoadService/Forgotten")
            assert code is DENIED and "nobody" in text and not everything.called
            code, _ = await status(channel, "/apf.v1.Nothing/Ever")
            assert code is grpc.StatusCode.UNIMPLEMENTED
            counted = {
                (method.lstrip("/"), "OK" if role in held else "PERMISSION_DENIED")
                for method, held in roles.METHODS.items()
            }
            unknown = {("unknown", "PERMISSION_DENIED"), ("unknown", "UNIMPLEMENTED")}
            assert everything.calls.calls == dict.fromkeys(counted | unknown, 1), "each call once, by its status"

    asyncio.run(run())
