"""The lines of a ledger's file: each has its number and a sum, so that damage is seen, and costs no other line.

A line is a JSON object that ends in ``"line": 17, "sum": "8f3a01c255e0b7d4"``: its number, counted from 1, and two
CRC-32 of what stands before the sum, one of it alone and one that goes on from the sum of the line before. A changed
byte is seen by the first, a line of another ledger by the second, and one that is missing or there twice by its number.
Ledgers of older versions have neither; from the first line that has them all must.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mixtune.errors import printable
from mixtune.run.events import why_wrong

_SEAL = re.compile(rb', "line": (?P<line>[0-9]{1,15})(?P<end>, "sum": "(?P<sum>[0-9a-f]{16})"\}$)')
_ESCAPED = re.compile(rb"\\[bfrnu]|[\x7f\xc2\xe2]")  # of what printable() replaces JSON has no other form
DAMAGED = "damaged"  # the event that a reader is given in place of lines that do not count


@dataclass
class Lines:
    """What a ledger's file holds.

    events: in order, with an event ``damaged`` (line, reason, count) in place of lines that do not count; next: the
    number of the line after them; sum: that of the last one, empty where it is not known; size: how many bytes end in a
    whole line, what follows being torn.
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    next: int = 1
    sum: bytes = b""
    size: int = 0

    def followed_by(self, line: bytes) -> Lines:
        """Return what a file holds after one more sealed line; of the events nothing."""
        match = _SEAL.search(line)
        return Lines([], self.next + 1, match["sum"] if match else b"", self.size + len(line) + 1)


def seal(event: Mapping[str, Any], before: Lines) -> bytes:
    """Return the line of an event that follows others, without its end. Raises TypeError and ValueError, as JSON."""
    return seal_text(json.dumps(event, allow_nan=False), before)


def seal_text(event: str, before: Lines) -> bytes:
    """Return the line of an event in JSON, see seal()."""
    text = f'{event[:-1]}, "line": {before.next}'.encode()
    return text + b', "sum": "' + _sum(text, before.sum) + b'"}'


def read_lines(data: bytes) -> Lines:
    """Return what the bytes of a ledger hold."""
    found, is_sealed = Lines(), False
    lines = data.split(b"\n")
    lines.pop()  # what is after the last newline was never acknowledged
    for number, line in enumerate(lines):
        event = parse_line(line)
        if event is None and number + 1 == len(lines):
            break  # nor what a power cut made of the last line
        found.size += len(line) + 1
        match = _SEAL.search(line)
        is_sealed |= match is not None
        reason = _why_damaged(line, match, event, found) if is_sealed else None
        if reason is None:
            reason = "is not a JSON object with an 'event'" if event is None else why_wrong(event)
            reason = "calls itself damaged" if event is not None and event["event"] == DAMAGED else reason
        at = found.next if match is None or reason == _CHANGED else int(match["line"])
        if at > found.next:
            missing = at - found.next
            found.events.append({"event": DAMAGED, "line": found.next, "reason": "is missing", "count": missing})
        if reason is None and event is not None:
            event.pop("line", None)
            event.pop("sum", None)
            found.events.append(with_printable_text(event, line))
        else:
            found.events.append({"event": DAMAGED, "line": at, "reason": reason, "count": 1})
        found.next = max(found.next, at + 1)
        found.sum = match["sum"] if match is not None and reason is None else b""
    if (tail := data[found.size :]) and not _is_begun(tail):
        found.events.append({"event": DAMAGED, "line": found.next, "reason": "is no line of a ledger", "count": 1})
    return found


def _is_begun(tail: bytes) -> bool:
    """Return whether what follows the last whole line is the beginning of one, which a writer has not finished."""
    begins = b'{"event": '
    return b"\0" not in tail and (tail.startswith(begins) or begins.startswith(tail))


_CHANGED = "was changed: its sum is another one"


def _why_damaged(
    line: bytes, match: re.Match[bytes] | None, event: Mapping[str, Any] | None, before: Lines
) -> str | None:
    if match is None:
        return "has no sum"
    text, stored = line[: match.start("end")], match["sum"]
    alone, follows = (_sum(text, before.sum)[half] for half in (slice(0, 8), slice(8, 16)))
    if alone != stored[:8] or event is None:
        return _CHANGED
    if int(match["line"]) < before.next:
        return "is there twice, or out of place"
    if int(match["line"]) == before.next and before.sum and follows != stored[8:]:
        return "does not follow the line before it"
    return None


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return the event of a line, None where it holds none."""
    try:
        event = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def with_printable_text(event: dict[str, Any], line: bytes) -> dict[str, Any]:
    """Return an event whose texts command no terminal; line: its JSON."""
    return dict(printable_values(event)) if _ESCAPED.search(line) else event


def printable_values(value: Any) -> Any:
    """Return a value of JSON whose texts command no terminal; they may still have several lines."""
    if isinstance(value, dict):
        return {printable(name): printable_values(item) for name, item in value.items()}
    if isinstance(value, list):
        return [printable_values(item) for item in value]
    return "\n".join(map(printable, value.split("\n"))) if isinstance(value, str) else value


def _sum(text: bytes, before: bytes) -> bytes:
    return f"{zlib.crc32(text):08x}{zlib.crc32(text, zlib.crc32(before)):08x}".encode()
