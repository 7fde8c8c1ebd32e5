"""A ledger whose lines somebody changed who knows how they are sealed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixtune.run.lines import Lines, seal


def forge(ledger: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change each event in place, and seal all lines again."""
    before, sealed = Lines(), []
    for text in ledger.read_text().splitlines():
        event = json.loads(text)
        del event["line"], event["sum"]
        change(event)
        line = seal(event, before)
        sealed.append(line + b"\n")
        before = before.followed_by(line)
    ledger.write_bytes(b"".join(sealed))
