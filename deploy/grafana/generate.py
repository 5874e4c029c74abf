"""The dashboards as JSON, and where they are written.

The JSON is a function of the code and of the SDK's version, which is pinned for that reason.
"""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana import fault_time, health, paying_off, thrashing

DIRECTORY = Path(__file__).parent / "dashboards"


def generated() -> dict[str, str]:
    """Text by name of file."""
    pages = (paying_off.page(), fault_time.page(), thrashing.page(), health.page())
    encoder = JSONEncoder(sort_keys=True, indent=2)
    return {f"{page.uid}.json": encoder.encode(page.build()) + "\n" for page in pages}


def write(directory: Path = DIRECTORY) -> list[Path]:
    """Write all of them; what is there under another name goes."""
    directory.mkdir(exist_ok=True)
    texts = generated()
    for path in directory.glob("*.json"):
        if path.name not in texts:
            path.unlink()
    paths = []
    for name, text in texts.items():
        paths.append(directory / name)
        paths[-1].write_text(text)
    return paths
