"""What every result file carries beside its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from netlab import provenance


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """Write figures with commit, date and hardware; nothing without a path."""
    if path is None:
        return
    head = {"commit": provenance.commit(), "date": provenance.today(), "hardware": provenance.hardware()}
    path.write_text(json.dumps(head | figures, indent=1) + "\n")
