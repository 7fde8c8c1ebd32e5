"""The ledger keeps every acknowledged line through crashes, and folds to one state a trial."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mixtune.errors import RequestError
from mixtune.run.frames import csv_text
from mixtune.run.ledger import MAX_BYTES, Ledger, RunState, describe_damage, finite_or_none, fold, read_ledger
from mixtune.run.lines import read_lines, seal, seal_text


def event(kind: str, trial: str = "t0001", **fields: Any) -> dict[str, Any]:
    return {"event": kind, "time": 1.0, "trial": trial, **fields}


def test_what_is_appended_is_returned_as_readers_will_see_it_in_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    params = {"alpha": 0.5, "note": "ümläut\nnewline", "shape": (1, 2)}
    written = [ledger.append("asked", trial="t0001", params=params), ledger.append("started", trial="t0001", time=12.5)]
    params["alpha"] = 0.9
    assert read_ledger(ledger.path) == written
    assert written[0]["params"] == {"alpha": 0.5, "note": "ümläut\nnewline", "shape": [1, 2]}
    assert written[0]["time"] > 1e9
    assert written[1] == {"event": "started", "time": 12.5, "trial": "t0001"}


def test_records_kept_event_by_event_are_those_of_the_whole_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    state = RunState()
    for kind in ("asked", "started", "epoch", "failed", "retried", "started", "complete", "confirmed"):
        state.apply(ledger.append(kind, trial="t0001", metrics={"epoch": 1}, reason="why", seed=1))
        assert state.records == fold(read_ledger(ledger.path)).records


def test_a_crash_at_any_byte_loses_no_whole_line_and_the_next_append_leaves_a_sound_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    writer = Ledger(path)
    writer.append("asked", trial="t0001", time=1, params={"alpha": 0.25, "epochs.sl": 20})
    writer.append("epoch", trial="t0001", time=2, metrics={"epoch": 1, "val_accuracy": None, "note": "ü"})
    writer.append("complete", trial="t0001", time=3, metrics={"val_accuracy": 0.93})
    data, events = path.read_bytes(), read_ledger(path)
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = data[:cut].count(b"\n")
        assert read_ledger(path) == events[:whole]
        Ledger(path).append("started", trial="t0002", time=4)
        Ledger(path).append("started", trial="t0003", time=5)
        assert [line["time"] for line in read_ledger(path)] == [*[1, 2, 3][:whole], 4, 5]
        assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_an_unreadable_last_line_is_skipped_by_readers_and_cut_by_the_writer(tmp_path: Path) -> None:
    for torn in (b"\x00\x00\x00\x00", b"\x00\x00\n", b'{"event": "ask\n', b"[1]\n", b"\xff\n"):
        path = tmp_path / f"{torn.hex()}.jsonl"
        Ledger(path).append("asked", trial="t0001", time=1)
        path.write_bytes(path.read_bytes() + torn)
        assert kinds(path) == ["asked"] if torn.startswith(b"{") else ["asked", "damaged"], torn
        Ledger(path).append("started", trial="t0001", time=2)
        assert [line["event"] for line in read_ledger(path)] == ["asked", "started"], torn


def test_a_missing_ledger_is_told_by_its_directory_and_a_damaged_line_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(RequestError, match=rf"{tmp_path} holds no run: ledger\.jsonl is missing"):
        read_ledger(path)
    path.write_text('{"event": "asked", "trial": "t0001"}\n{"event": "star\n{"event": "started", "trial": "t0001"}\n')
    assert kinds(path) == ["asked", "damaged", "started"]
    damage = describe_damage(fold(read_ledger(path)))
    assert damage == "line 2 is not a JSON object with an 'event': what is damaged does not count"


def kinds(path: Path) -> list[str]:
    return [event["event"] for event in read_ledger(path)]


@pytest.mark.parametrize(
    "fields",
    [
        *(
            {"trial": name}
            for name in ("../../elsewhere/model", "/abs", "..", "", "x" * 65, "a\0b", "t\n", "ü", 5, ["t"])
        ),
        {"same_as": "../t0001", "of": ["known"]},
        {"follows": ["../t0001", 1], "of": ["started"]},
        {"baseline": "../sl", "of": ["asked"]},
        {"method": "mine", "of": ["baseline"]},
        {"state": "a-b", "metrics": {"epoch": 1}, "of": ["epoch"]},
        {"stage": f"../{'0' * 40}"},
        {
            "stored": {"1": "../../key"},
            **{"from": ["run", "t0001"], "params": {}, "metrics": {}, "epochs": []},
            "of": ["learned"],
        },
        *(
            {"metrics": {"val_accuracy": value}}
            for value in ("0.99", True, 5.0, -0.1, [0.9], {"a": 1}, 10**400, float("1e999"))
        ),
        *({"metrics": {"train_latency_s": value}} for value in (-1.0, 1e308)),
        *({"metrics": {"epoch": value}} for value in (1.5, -1, float("1e999"))),
        {"metrics": {"phase": 1}},
        {"metrics": [1]},
        {"params": {"val_accuracy": 0.99}, "of": ["asked"]},
        {"params": {"alpha": [[[[[[1]]]]]]}, "of": ["asked"]},
        {"predictions": {"digits": "////"}},
        {"steps": {"ssl": {"key": -1}}},
        {"seconds": "5", "of": ["waited"]},
        *({"time": value} for value in (-1.0, 1e12, "5")),
        {"trials": 2.5, "of": ["extended"]},
        {"document": [], "kept": {}, "of": ["edited"]},
        {"digest": "0", "classes": [[1]], "labels": {}, "of": ["validation"]},
    ],
)
def test_what_breaks_the_table_of_events_is_never_written_and_does_not_count_where_it_is_read(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("asked", trial="t0001", baseline="sl")
    (kind,) = fields.pop("of", ["complete"])
    event = {"event": kind, "trial": "t0001", **fields}
    with pytest.raises(ValueError, match=r"should be|JSON"):
        ledger.append(**event)
    sealed = json.dumps(event).replace("Infinity", "1e999")
    with ledger.path.open("ab") as file:
        file.write(seal_text(sealed, read_lines(ledger.path.read_bytes())) + b"\n")
    damage = describe_damage(fold(read_ledger(ledger.path)))
    assert damage.startswith("line 2 "), damage
    assert " should be " in damage
    assert "\n" not in damage
    before = ledger.path.read_bytes()
    Ledger(ledger.path).append("extended", trials=3)
    assert ledger.path.read_bytes().startswith(before)
    assert kinds(ledger.path) == ["asked", "damaged", "extended"]


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A ledger of twelve lines."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for number in (1, 2, 3):
        name = f"t{number:04d}"
        ledger.append("asked", trial=name, params={"rho": number / 10}, time=1)
        ledger.append("started", trial=name, time=2)
        ledger.append("epoch", trial=name, metrics={"epoch": 1, "val_accuracy": 0.5 + number / 100}, time=3)
        ledger.append("complete", trial=name, metrics={"epoch": 1, "val_accuracy": 0.5 + number / 100}, time=4)
    return ledger.path


def test_a_changed_byte_costs_its_own_line_and_is_named(sound: Path) -> None:
    data, events = sound.read_bytes(), read_ledger(sound)
    ends = [i for i, byte in enumerate(data) if byte == 10]
    for place in (i for i in range(len(data)) if i not in ends):
        line = sum(end < place for end in ends)
        sound.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        found = read_ledger(sound)
        if line == 0 and found[0]["event"] != "damaged":  # without a sum it is of an older ledger
            assert events[0].items() <= found[0].items(), place
            continue
        assert found[:line] + found[line + 1 :] == events[:line] + events[line + 1 :], place
        is_torn = line == len(ends) - 1 and len(found) == line
        assert is_torn or (found[line]["event"], found[line]["line"]) == ("damaged", line + 1), place


def test_missing_doubled_moved_and_foreign_lines_are_seen_and_the_others_count(sound: Path, tmp_path: Path) -> None:
    lines = sound.read_bytes().splitlines(keepends=True)
    other = Ledger(tmp_path / "other.jsonl")
    for _ in lines:
        other.append("extended", trials=999)
    foreign = other.path.read_bytes().splitlines(keepends=True)
    itself = seal({"event": "damaged", "time": 1}, read_lines(sound.read_bytes())) + b"\n"
    cases = {
        "line 5 is missing": lines[:4] + lines[5:],
        "lines 5 to 7 are missing": lines[:4] + lines[7:],
        "line 5 is there twice, or out of place": lines[:5] + lines[4:],
        "line 5 is missing, line 5 is there twice, or out of place": [*lines[:4], lines[5], lines[4], *lines[6:]],
        "line 5 does not follow the line before it": [*lines[:4], foreign[4], *lines[5:]],
        "line 13 calls itself damaged": [*lines, itself],
        "line 5 has no sum": [*lines[:4], b'{"event": "extended", "trials": 999}\n', *lines[5:]],
    }
    for told, changed in cases.items():
        sound.write_bytes(b"".join(changed))
        state = fold(read_ledger(sound))
        lost = (
            ""
            if "itself" in told or ("twice" in told and "missing" not in told)
            else "; of t0002 the recipe is not known"
        )
        assert describe_damage(state) == f"{told}: what is damaged does not count{lost}"
        assert state.budget is None
        assert {name: record.params for name, record in state.records.items()}["t0003"] == {"rho": 0.3}
        appended = Ledger(sound).append("extended", trials=12)
        assert read_ledger(sound)[-1] == appended


def test_an_older_ledger_goes_on_with_sums_and_then_each_line_must_have_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"event": "asked", "trial": "t0001"}\n' * 3)
    Ledger(path).append("extended", trials=3)
    assert kinds(path) == ["asked"] * 3 + ["extended"]
    assert b'"line": 4, "sum": "' in path.read_bytes()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[1:], lines[0]]))
    assert describe_damage(fold(read_ledger(path))).startswith("line 3 is missing, line 5 has no sum: ")


def test_text_of_a_ledger_commands_no_terminal(sound: Path) -> None:
    event = {"event": "failed", "trial": "t0003", "reason": "\x1b[2J\u202etxt\x9b1m\nü 😀", "metrics": {}}
    with sound.open("ab") as file:
        file.write(seal_text(json.dumps(event), read_lines(sound.read_bytes())) + b"\n")
    assert read_ledger(sound)[-1]["reason"] == "\\x1b[2J\\u202etxt\\x9b1m\nü 😀"
    assert (
        Ledger(sound).append(**event)["reason"] == read_ledger(sound)[-1]["reason"] == "\\x1b[2J\\u202etxt\\x9b1m\nü 😀"
    )
    frame = pd.DataFrame({"reason": ["=cmd|' /C calc'!A0", "-5", "-x", "@a", None], "n": [-1.5, 2, 3, 4, 5]})
    texts = ["'=cmd|' /C calc'!A0,-1.5", "-5,2.0", "'-x,3.0", "'@a,4.0", ",5.0"]
    assert csv_text(frame) == "\n".join(["reason,n", *texts, ""])


def test_what_a_crash_left_is_kept_aside(sound: Path, caplog: pytest.LogCaptureFixture) -> None:
    sound.write_bytes(sound.read_bytes() + b'{"event": "ask')
    Ledger(sound).append("extended", trials=3)
    assert sound.with_suffix(".torn").read_bytes() == b'{"event": "ask\n'
    assert caplog.messages == [f"{sound}: 14 bytes of a line that was never finished are moved to ledger.torn"]


def test_a_ledger_is_written_through_no_link_and_read_from_a_file_alone(tmp_path: Path) -> None:
    (victim := tmp_path / "victim").write_text("my-api-token\n")
    path = tmp_path / "ledger.jsonl"
    for target in (victim, tmp_path / "new", tmp_path / "space.yaml"):
        path.symlink_to(target)
        with pytest.raises(RequestError, match=r"ledger\.jsonl cannot be written: it is a link$"):
            Ledger(path).append("extended", trials=1)
        path.unlink()
    assert [item.name for item in tmp_path.iterdir()] == ["victim"]
    assert victim.read_text() == "my-api-token\n"

    for make in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"), make_large):
        make(path)
        with pytest.raises(RequestError, match=r"ledger\.jsonl cannot be read: it (is not a regular|has .* bytes)"):
            read_ledger(path)
        if make is not make_large:
            with pytest.raises(RequestError, match=r"ledger\.jsonl cannot be written: "):
                Ledger(path).append("extended", trials=1)
        path.rmdir() if make is os.mkdir else path.unlink()


def make_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # no block of it is on the disk


def test_a_number_that_is_not_finite_is_refused_and_finite_or_none_makes_any_metrics_fit(tmp_path: Path) -> None:
    metrics = {
        "a": np.float32(0.5),
        "b": [np.int64(3), float("nan"), (np.float64("inf"), True)],
        "c": {"d": np.array([1.0, np.nan]), "e": "text", "f": np.bool_(False), "g": None},
    }
    plain = finite_or_none(metrics)
    rest = {"d": [1.0, None], "e": "text", "f": False, "g": None}
    assert plain == {"a": 0.5, "b": [3, None, [None, True]], "c": rest}
    assert (type(plain["b"][0]), type(plain["c"]["f"])) == (int, bool)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("epoch", trial="t0001", metrics={"epoch": 1, **plain})
    before = ledger.path.read_bytes()
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            ledger.append("epoch", trial="t0001", metrics={"val_accuracy": value})
        assert ledger.path.read_bytes() == before, value


def test_the_first_ending_wins() -> None:
    late = [event("complete", metrics={"x": 1}), event("failed", reason="late"), event("epoch", metrics={"x": 2})]
    for ending in ("complete", "stopped", "failed", "rejected"):
        record = fold([event(ending, reason="first"), *late, event("started")]).records["t0001"]
        assert (record.state, record.reason, record.epochs) == (ending, "first", [])


def test_a_trial_runs_through_its_states_and_is_complete_where_a_retry_completed() -> None:
    events = [
        event("asked", params={"alpha": 0.5}),
        event("started", time=2.0),
        event("epoch", metrics={"epoch": 1, "phase": "ssl", "loss": 3.0}),
        event("epoch", metrics={"epoch": 2, "phase": "ssl", "loss": 2.0}),
        event("failed", time=3.0, reason="out of memory"),
        event("retried", time=4.0, reason="with twice the share"),
        event("started", time=5.0),
        event("epoch", metrics={"epoch": 2, "phase": "ssl", "loss": 2.5}),
        event("complete", time=8.0, metrics={"val_accuracy": 0.9}),
    ]
    moments = [fold(events[: n + 1]).records["t0001"] for n in range(len(events))]
    states = ["asked", "running", "running", "running", "failed", "asked", "running", "running", "complete"]
    assert [record.state for record in moments] == states
    assert [record.metrics.get("loss") for record in moments] == [None, None, 3.0, 2.0, None, 2.0, 2.0, 2.5, None]
    assert [record.ended_time for record in moments] == [None] * 4 + [3.0] + [None] * 3 + [8.0]
    record = moments[-1]
    assert (record.params, record.metrics, record.reason) == ({"alpha": 0.5}, {"val_accuracy": 0.9}, None)
    assert (record.asked_time, record.started_time) == (1.0, 5.0)
    assert [epoch["loss"] for epoch in record.epochs] == [3.0, 2.5]


def test_events_of_later_versions_are_skipped() -> None:
    events = [event("asked"), event("confirmed"), {"event": "extended", "time": 2.0, "trials": 40}]
    events += [{"event": "step_time", "time": 2.0}, event("confirmed", "t0099")]
    records = fold(events).records
    assert list(records) == ["t0001"]
    assert records["t0001"].state == "asked"


def test_lost_nodes_are_no_crashes_and_states_that_came_home_have_no_node(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("asked", trial="t1", params={})
    ledger.append("epoch", trial="t1", metrics={"epoch": 1}, state="0" * 40, node="10.0.0.2")
    for cause in ("node lost", "node lost", "crash"):
        ledger.append("retried", trial="t1", reason="gone", cause=cause)
    record = fold(read_ledger(ledger.path)).records["t1"]
    assert (record.losses, record.crashes, record.nodes) == (2, 1, {1: "10.0.0.2"})
    ledger.append("brought", trial="t1", epoch=1)
    ledger.append("epoch", trial="t1", metrics={"epoch": 2})
    record = fold(read_ledger(ledger.path)).records["t1"]
    assert (record.losses, record.crashes, record.nodes, record.stored) == (0, 1, {}, {1: "0" * 40})
