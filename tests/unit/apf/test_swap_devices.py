"""Profiles of swap devices: the data, and how a scenario finds and carries a user's."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apf import swapdevice
from apf.scenario import Scenario, ScenarioError, load
from apf.swapdevice import CarriedProfile, Profile, ProfileError
from hostd import device_profiles

MINE = "servers = 2\nread_ns = [1000, 2000, 5000]\nwrite_ns = [700, 900]\n"


def written(directory: Path, profile: str = MINE, name: str = "mine.toml") -> Path:
    """A scenario's file beside a profile's."""
    (directory / name).write_text(profile)
    path = directory / "scenario.toml"
    path.write_text(f"seed = 3\nswap.device = '{name}'\n")
    return path


def test_a_file_is_found_beside_the_scenario_and_carried(tmp_path: Path) -> None:
    scenario = load(written(tmp_path), {})
    device = scenario.swap.device
    assert isinstance(device, CarriedProfile)
    assert (device.servers, device.read_ns, device.write_ns) == (2, (1000, 2000, 5000), (700, 900))
    assert device.background and device.median_ns == 2000
    assert device.file == str(tmp_path / "mine.toml")
    assert device.sha256 == hashlib.sha256(MINE.encode()).hexdigest()
    assert scenario.swap.name == device_profiles.load(device).name == "mine"


def test_what_a_scenario_carries_needs_the_file_no_more(tmp_path: Path) -> None:
    scenario = load(written(tmp_path), {})
    (tmp_path / "mine.toml").unlink()
    again = Scenario.model_validate(json.loads(json.dumps(scenario.model_dump(mode="json"))))
    assert again == scenario and again.fingerprint() == scenario.fingerprint()
    assert device_profiles.load(again.swap.device) == device_profiles.load(scenario.swap.device)
    with pytest.raises(ScenarioError, match="No such file"):
        load(tmp_path / "scenario.toml", {})


@pytest.mark.parametrize("changed", [MINE.replace("5000", "5001"), MINE + "# a remark\n"])
def test_the_fingerprint_covers_the_files_content(changed: str, tmp_path: Path) -> None:
    before = load(written(tmp_path), {}).fingerprint()
    assert load(written(tmp_path), {}).fingerprint() == before
    assert load(written(tmp_path, changed), {}).fingerprint() != before


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ("", "servers: missing"),
        (MINE.replace("2\n", "'2'\n", 1), "servers = '2': input should be a valid integer"),
        (MINE.replace("servers = 2", "servers = 5000"), "servers = 5000: input should be less than or equal to 4096"),
        (MINE + "readahead = 3\n", "readahead: no such field; allowed: source, servers,"),
        (MINE.replace("2000", "500"), "read_ns.1 = 500: quantiles ascend, so at least 1000"),
        (MINE.replace("700", "0"), "write_ns.0 = 0: input should be greater than or equal to 1"),
        (MINE.replace("[700, 900]", "[700]"), "write_ns = [700]: tuple should have at least 2 items"),
        (MINE.replace("[700, 900]", "[700, '900']"), "write_ns.1 = '900': input should be a valid integer"),
        (MINE + "skip_slots_max = 4\n", "skip_slots_max = 4: 0, because transfer_ns is 0"),
        (MINE + "bandwidth = 4095\n", "bandwidth = 4095: 0, or at least 4096, a page a second"),
        (MINE + "bandwidth = -1\n", "bandwidth = -1: input should be greater than or equal to 0"),
        (MINE + "bandwidth = 1e9\n", "bandwidth = 1000000000.0: input should be a valid integer"),
        (MINE + "read_errors = -1\n", "read_errors = -1: input should be greater than or equal to 0"),
        (
            MINE + f"write_errors = {10**15 + 1}\n",
            f"write_errors = {10**15 + 1}: input should be less than or equal to",
        ),
        (MINE + "background = 1\n", "background = 1: input should be a valid boolean"),
        (MINE + "source = 'täble'\n", "source = 'täble'"),
        ("servers = \n", "not TOML"),
    ],
)
def test_what_is_wrong_is_told_with_file_field_and_value(profile: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError) as raised:
        load(written(tmp_path, profile), {})
    message = str(raised.value)
    assert told in message
    for line in message.splitlines():
        assert line.startswith(f"swap.device = 'mine.toml': {tmp_path / 'mine.toml'}: ")


@pytest.mark.parametrize(
    ("device", "told"),
    [
        (7, "swap.device = 7: allowed: hdd-7200, "),
        ({"servers": 1, "read_ns": [1, 2]}, "swap.device.write_ns: missing"),
        (
            {"servers": 1, "read_ns": [1, 2], "write_ns": [1, 2], "speed": 3},
            "swap.device.speed: no such field; allowed",
        ),
    ],
)
def test_a_profile_in_the_scenario_itself_is_checked_too(device: object, told: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        load(None, {"swap.device": device})
    assert told in str(raised.value)


_QUANTILES = st.lists(st.integers(1, 10**9), min_size=2, max_size=30).map(lambda drawn: tuple(sorted(drawn)))


@given(
    st.builds(
        Profile,
        source=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=500),
        servers=st.integers(0, 4096),
        background=st.booleans(),
        read_median_ns=st.integers(0, 10**9),
        rotation_ns=st.integers(0, 10**9),
        transfer_ns=st.integers(1, 10**9),
        skip_slots_max=st.integers(0, 1000),
        bandwidth=st.just(0) | st.integers(4096, 10**15),
        read_errors=st.integers(0, 10**15),
        write_errors=st.integers(0, 10**15),
        read_ns=_QUANTILES,
        write_ns=_QUANTILES,
    ),
    st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126)), max_size=3),
)
def test_the_text_of_a_profile_says_what_it_is(profile: Profile, comment: list[str]) -> None:
    text = profile.text("\n".join(comment))
    assert swapdevice.parse(text.encode(), "text") == profile
    assert Profile.model_validate(tomllib.loads(text)) == profile


def test_a_page_on_a_link_takes_what_the_bandwidth_says_and_never_less() -> None:
    profiles = [swapdevice.parse(f"{MINE}bandwidth = {rate}\n".encode(), "mine") for rate in (0, 4096, 600_000_000)]
    assert [device_profiles.load(CarriedProfile(**each.model_dump())).page_ns for each in profiles] == [
        0,
        10**9,
        6827,
    ]


def test_bytes_that_are_no_text_are_told() -> None:
    with pytest.raises(ProfileError, match=r"^some\.toml: not TOML"):
        swapdevice.parse(b"\xff\xfe", "some.toml")
