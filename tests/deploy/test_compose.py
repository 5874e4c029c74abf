"""deploy/docker-compose.yml: what every container is denied, and, where a container engine answers, the real thing."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from apf.hostmem import Geometry
from apf.scenario import load

DEPLOY = Path(__file__).parents[2] / "deploy"
FILE = DEPLOY / "docker-compose.yml"
SCENARIO = load(DEPLOY / "scenarios" / "compose.toml", {})
DAEMONS = ["hostd", *(f"{name}-{vm}" for vm in range(SCENARIO.host.vms) for name in ("guest", "vcpud"))]
PROJECT = "apf-test"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def mib(size: str) -> int:
    assert size.endswith("m")
    return int(size[:-1])


def test_services() -> None:
    assert set(SERVICES) == {*DAEMONS, "load", "prometheus", "grafana"}
    assert SERVICES["load"]["profiles"] == ["load"]
    assert "version" not in COMPOSE and "name" not in COMPOSE, "docker-compose 1.29 and docker compose 2 differ there"


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_may_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    user = service["user"].split(":")[0]
    assert user.isdecimal() and user != "0"
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"] and "privileged" not in service
    assert service["restart"] == "no" and service["stop_grace_period"] == "10s" and service["init"] is True
    assert service["cpus"] > 0 and service["pids_limit"] <= 128 and mib(service["mem_limit"]) <= 640
    assert "healthcheck" in service and service["logging"]["options"]["max-size"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert not {"network_mode", "pid", "ipc", "devices"} & set(service)
    mounts = [volume for volume in service.get("volumes", ()) if volume.startswith(".")]
    assert all(mount.endswith(":ro") and (DEPLOY / mount.split(":")[0]).exists() for mount in mounts)


def test_every_daemon_knows_its_vm_and_waits_for_whom_it_needs() -> None:
    for name in DAEMONS:
        command = SERVICES[name]["command"]
        if name != "hostd":
            assert command[command.index("--vm") + 1] == name[-1]
        assert command[command.index("--metrics") + 1] == "0.0.0.0:9100"
        assert SERVICES[name]["volumes"][:2] == ["memory:/run/apf/memory", "files:/run/apf/files"]
    for vm in range(SCENARIO.host.vms):
        assert SERVICES[f"guest-{vm}"]["depends_on"] == {"hostd": {"condition": "service_healthy"}}
        assert SERVICES[f"vcpud-{vm}"]["depends_on"].keys() == {"hostd", f"guest-{vm}"}
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert {target for job in scraped for each in job["static_configs"] for target in each["targets"]} == {
        f"{name}:9100" for name in DAEMONS
    }


def test_the_memory_volume_holds_what_the_scenario_needs() -> None:
    options = dict(
        option.partition("=")[::2] for option in COMPOSE["volumes"]["memory"]["driver_opts"]["o"].split(",")
    )
    needed = Geometry.of(SCENARIO).bytes
    assert needed < mib(options["size"]) << 20 < 2 * needed
    assert options["mode"] == "0700" and options["uid"] == SERVICES["hostd"]["user"].split(":")[0]
    assert mib(SERVICES["hostd"]["mem_limit"]) > 3 * (needed >> 20), "hostd touches most of it"


def compose_command() -> list[str] | None:
    """Docker compose 2, or docker-compose."""
    if (
        shutil.which("docker")
        and subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    ):
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


def test_compose_finds_the_file_valid() -> None:
    command = compose_command()
    if command is None:
        pytest.skip("neither docker compose nor docker-compose is installed")
    done = subprocess.run([*command, "-f", str(FILE), "config"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def missing() -> str:
    """What the test of the real thing lacks here; empty: nothing."""
    if compose_command() is None:
        return "docker compose is not installed"
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return "no container engine answers"
    return ""


class Cluster:
    """The compose project of a test."""

    def __init__(self) -> None:
        self._command = [*(compose_command() or ()), "-p", PROJECT, "-f", str(FILE), "--profile", "load"]

    def __call__(self, *arguments: str, deadline_s: float = 300) -> str:
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, check=False, timeout=deadline_s
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def exits(self) -> dict[str, int]:
        """Status of each container that has ended."""
        ids = docker("ps", "-aq", "--filter", f"label={LABEL}").split()
        found = json.loads(docker("inspect", *ids))
        return {
            item["Config"]["Labels"]["com.docker.compose.service"]: item["State"]["ExitCode"]
            for item in found
            if not item["State"]["Running"]
        }


LABEL = f"com.docker.compose.project={PROJECT}"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if why := missing():
        pytest.skip(why)
    made = Cluster()
    made("down", "-v")
    yield made
    made("down", "-v")


def prometheus(query: str) -> dict[str, float]:
    """An instant query: instance -> value."""
    # Until it listens, nobody answers.
    url = f"http://127.0.0.1:9090/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
    except OSError:
        return {}
    return {item["metric"].get("instance", ""): float(item["value"][1]) for item in found}


@pytest.mark.long
def test_a_cluster_of_containers(cluster: Cluster) -> None:
    """Built, started, scraped, loaded, stopped and removed; without Grafana, whose image need not be at hand."""
    docker("build", "--network", "host", "-f", str(DEPLOY / "Dockerfile"), "-t", "apf-emulator", str(DEPLOY.parent))
    cluster("up", "-d", "--no-build", "prometheus", *DAEMONS)
    scraped: dict[str, float] = {}
    for _ in range(60):
        scraped = prometheus("up")
        counted = prometheus("sum by (instance) (apf_guest_instructions_total)")
        if set(scraped.values()) == {1.0} and len(scraped) == len(DAEMONS) and all(counted.values()) and counted:
            break
        time.sleep(2)
    assert scraped == {f"{name}:9100": 1.0 for name in DAEMONS}
    time.sleep(10)
    later = prometheus("sum by (instance) (apf_guest_instructions_total)")
    assert all(later[instance] > counted[instance] for instance in ("vcpud-0:9100", "vcpud-1:9100"))

    said = cluster("run", "--rm", "load")
    assert "accesses in" in said, said

    cluster("stop", *DAEMONS)
    exits = cluster.exits()
    assert {name: exits.get(name) for name in DAEMONS if exits.get(name) not in (1, 143)} == {}, (
        "137: killed, for it had not ended within its stop_grace_period of 10 s"
    )
    assert 143 in exits.values()
    for name in DAEMONS:
        lines = docker("logs", *container(name)).splitlines()
        assert all(json.loads(line)["process"] for line in lines)

    cluster("down", "-v")
    for what in ("ps -aq", "volume ls -q", "network ls -q"):
        assert docker(*what.split(), "--filter", f"label={LABEL}") == ""


def container(service: str) -> list[str]:
    return docker(
        "ps", "-aq", "--filter", f"label={LABEL}", "--filter", f"label=com.docker.compose.service={service}"
    ).split()
