"""deploy/docker-compose.yml: what every container is denied, and, where a container engine answers, the real thing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
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
MORE = [f"{name}-{vm}" for vm in range(SCENARIO.host.vms, SCENARIO.host.places) for name in ("guest", "vcpud")]
"""Those of VMs that join later, in profile ``more``."""
PROJECT = "apf-test"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def mib(size: str) -> int:
    assert size.endswith("m")
    return int(size[:-1])


def test_services() -> None:
    assert set(SERVICES) == {*DAEMONS, *MORE, "certs", "load", "prometheus", "grafana"}
    assert SERVICES["load"]["profiles"] == ["load"]
    assert MORE and all(SERVICES[name]["profiles"] == ["more"] for name in MORE)
    assert "version" not in COMPOSE and "name" not in COMPOSE, "docker-compose 1.29 and docker compose 2 differ there"


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_may_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    user = service["user"].split(":")[0]
    assert user.isdecimal() and user != "0"
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"] and "privileged" not in service
    assert service["restart"] == "no" and service["stop_grace_period"] == "10s" and service["init"] is True
    assert float(str(service["cpus"]).removeprefix("${APF_VCPUD_CPUS:-").removesuffix("}")) > 0
    assert service["pids_limit"] <= 128 and mib(service["mem_limit"]) <= 768
    assert "healthcheck" in service and service["logging"]["options"]["max-size"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert not {"network_mode", "pid", "ipc", "devices"} & set(service)
    mounts = [volume for volume in service.get("volumes", ()) if volume.startswith(".")]
    assert all(mount.endswith(":ro") and (DEPLOY / mount.split(":")[0]).exists() for mount in mounts)


def test_every_daemon_knows_its_vm_and_waits_for_whom_it_needs() -> None:
    for name in (*DAEMONS, *MORE):
        command = SERVICES[name]["command"]
        if name != "hostd":
            assert command[command.index("--vm") + 1] == name[-1]
        assert command[command.index("--metrics") + 1] == "0.0.0.0:9100"
        assert SERVICES[name]["volumes"][:2] == ["memory:/run/apf/memory", "files:/run/apf/files"]
    for vm in range(SCENARIO.host.places):
        assert SERVICES[f"guest-{vm}"]["depends_on"] == {
            "hostd": {"condition": "service_healthy"},
            "certs": {"condition": "service_completed_successfully"},
        }
        # A guest is healthy once its VM has joined, for which the vCPUs must be there.
        assert SERVICES[f"vcpud-{vm}"]["depends_on"] == {
            "hostd": {"condition": "service_healthy"},
            f"guest-{vm}": {"condition": "service_started"},
        }
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert {target for job in scraped for each in job["static_configs"] for target in each["targets"]} == {
        f"{name}:9100" for name in DAEMONS
    }
    assert [name for job in scraped for each in job["dns_sd_configs"] for name in each["names"]] == MORE


def test_load_comes_to_the_loopback_with_certificates_only() -> None:
    for vm in range(SCENARIO.host.places):
        service = SERVICES[f"guest-{vm}"]
        assert service["ports"] == [f"127.0.0.1:{50051 + vm}:50051"]
        command = service["command"]
        assert command[command.index("--api") + 1] == "0.0.0.0:50051"
        for option, name in (("--tls-cert", "guest"), ("--tls-key", "guest-key"), ("--tls-ca", "ca")):
            assert command[command.index(option) + 1] == f"/run/apf/certs/{name}.pem"
        assert "certs:/run/apf/certs:ro" in service["volumes"]
    assert not any(
        "authority" in mount or "clients" in mount for name in DAEMONS for mount in SERVICES[name]["volumes"]
    )


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
        profiles = ("--profile", "load", "--profile", "more")
        self._command = [*(compose_command() or ()), "-p", PROJECT, "-f", str(FILE), *profiles]

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
def test_a_cluster_of_containers(cluster: Cluster, tmp_path: Path) -> None:
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

    (certs,) = container("certs")
    docker("cp", f"{certs}:/run/apf/clients", str(tmp_path))
    load = ["apf", "load", "--api", "127.0.0.1:50051", "--process", "mem", "--iodepth", "4", "--duration", "2"]
    load[0] = str(Path(sys.executable).with_name("apf"))
    names = {"cert": "load.pem", "key": "load-key.pem", "ca": "ca.pem"}
    shown = [word for name, file in names.items() for word in (f"--tls-{name}", str(tmp_path / "clients" / file))]
    done = subprocess.run([*load, *shown], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and "accesses in" in done.stdout, done.stderr
    done = subprocess.run(load, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1, "who shows no certificate is not heard"

    cluster("up", "-d", "--no-build", *MORE)
    for _ in range(60):
        if prometheus("apf_host_vms").get("hostd:9100") == SCENARIO.host.places:
            break
        time.sleep(1)
    docker("kill", *container("vcpud-1"))
    for _ in range(60):
        lost = prometheus('apf_host_vm_events_total{kind="lost"}').get("hostd:9100")
        if lost:
            break
        time.sleep(1)
    assert lost == 1 and prometheus("apf_host_vms")["hostd:9100"] == SCENARIO.host.places - 1
    assert "VM 1 has left" in logs("hostd")

    running = [name for name in (*DAEMONS, *MORE) if not name.endswith("-1")]
    cluster("stop", *running)
    exits = cluster.exits()
    assert {name: exits.get(name) for name in running if exits.get(name) not in (1, 143)} == {}, (
        "137: killed, for it had not ended within its stop_grace_period of 10 s"
    )
    assert 143 in exits.values()
    for name in (*DAEMONS, *MORE):
        lines = logs(name).splitlines()
        assert lines
        for line in lines:
            assert line.startswith("{") and json.loads(line)["process"], f"{name}: {line}"

    cluster("down", "-v")
    for what in ("ps -aq", "volume ls -q", "network ls -q"):
        assert docker(*what.split(), "--filter", f"label={LABEL}") == ""


def logs(service: str) -> str:
    """What a daemon has said, on both its streams."""
    command = ["docker", "logs", *container(service)]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, timeout=60
    ).stdout


def container(service: str) -> list[str]:
    return docker(
        "ps", "-aq", "--filter", f"label={LABEL}", "--filter", f"label=com.docker.compose.service={service}"
    ).split()
