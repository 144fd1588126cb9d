#!/usr/bin/env python3
"""Write what Prometheus, Grafana and Google's collector read: `python tools/monitoring.py`.

`trashsorting.cloud.monitoring` has the alerts and the panels. `make export` writes them to dockerfiles/monitoring.
"""

import json
from pathlib import Path
from typing import Any

from trashsorting.cloud.cloud_run import collector_config
from trashsorting.cloud.monitoring import grafana_dashboard, prometheus_rules
from trashsorting.cloud.vertex import to_yaml

FOLDER = Path(__file__).resolve().parents[1] / "dockerfiles" / "monitoring"
HEAD = "# Written by tools/monitoring.py from nbs/cloud; `make export` writes it again.\n"


def monitoring_files() -> dict[str, str]:
    "The text of each file, by its name in dockerfiles/monitoring."
    documents: dict[str, dict[str, Any]] = {"rules.yaml": prometheus_rules(), "cloud_run.yaml": collector_config()}
    written = {name: HEAD + to_yaml(document) for name, document in documents.items()}
    return written | {"dashboards/trashsorting.json": json.dumps(grafana_dashboard(), indent=2) + "\n"}


if __name__ == "__main__":
    for name, text in monitoring_files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
