"""Write the dashboards: ``python -m deploy.grafana``."""

from __future__ import annotations

from deploy.grafana.generate import write

if __name__ == "__main__":
    for path in write():
        print(path)
