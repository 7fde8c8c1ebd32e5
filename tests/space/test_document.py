"""A YAML file is read with the line of every key, and what is wrong with it is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mixtune.errors import RequestError
from mixtune.space.document import parse_document, read_document


def mistake(text: str) -> str:
    with pytest.raises(RequestError) as caught:
        parse_document(text, "space.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_key_remembers_its_line() -> None:
    document = parse_document("recipe:\n  # note\n  data: {dataset: digits}\nspace:\n  epochs.sl: 3\n", "space.yaml")
    assert document.values == {"recipe": {"data": {"dataset": "digits"}}, "space": {"epochs.sl": 3}}
    assert document.lines == {
        ("recipe",): 1,
        ("recipe", "data"): 3,
        ("recipe", "data", "dataset"): 3,
        ("space",): 4,
        ("space", "epochs.sl"): 5,
    }
    assert document.where(("recipe", "data", "root", "deeper")) == "space.yaml:3: "
    assert document.where(("search",)) == "space.yaml: "


def test_windows_line_ends_and_a_byte_order_mark_are_no_mistakes() -> None:
    document = parse_document("\ufeffrecipe:\r\n  alpha: 0.5\r\n", "space.yaml")
    assert document.values == {"recipe": {"alpha": 0.5}}
    assert document.where(("recipe", "alpha")) == "space.yaml:2: "


def test_a_plain_number_is_what_everyone_means_by_it() -> None:
    for text, value in (
        ("1e-3", 0.001), ("-1E5", -1e5), (".5", 0.5), ("1_000", 1000), ("0", 0), (".inf", float("inf")),
        ("true", True), ("null", None), ("010", "010"), ("1:30", "1:30"), ("2026-07-01", "2026-07-01"),
        ("2026-13-41", "2026-13-41"), ("1e", "1e"), ('"5"', "5"),
    ):  # fmt: skip
        read = parse_document(f"key: {text}", "space.yaml").values["key"]
        assert (read, type(read)) == (value, type(value)), text


def test_anchors_and_merge_keys_work_and_keep_their_lines() -> None:
    text = "first: &rates\n  base_lr: 1e-3\n  decay: 0.1\nsecond:\n  base_lr: 2e-3\n  <<: *rates\n"
    text += "third: &more\n  decay: 0.2\nc:\n  <<: [*rates, *more]\n"
    document = parse_document(text, "space.yaml")
    assert document.values["second"] == {"base_lr": 2e-3, "decay": 0.1}
    assert document.where(("second", "base_lr")) == "space.yaml:5: "
    assert document.where(("second", "decay")) == "space.yaml:3: "
    assert document.values["c"] == {"base_lr": 1e-3, "decay": 0.1}  # of several the first wins
    assert document.where(("c", "decay")) == "space.yaml:3: "


def test_aliases_that_stand_for_too_much_are_refused_at_once() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    assert mistake(text) == "space.yaml: holds more than 50,000 values, with its aliases written out"


def test_a_duplicate_key_is_refused_wherever_it_stands() -> None:
    for text, line, key, first in (
        ("recipe: 1\nspace: 2\nrecipe: 3\n", 3, "recipe", 1),
        ("recipe:\n  data: 1\n  data: 2\n", 3, "recipe.data", 2),
        ("recipe: {data: 1, 'data': 2}\n", 1, "recipe.data", 1),
        ("space:\n  - {x: 1}\n  - {y: 1,\n     y: 2}\n", 4, "space.y", 3),
        ("space:\n  alpha: {choice: [[{y: 1, y: 2}]]}\n", 2, "space.alpha.choice.y", 2),
    ):
        assert mistake(text) == f"space.yaml:{line}: duplicate key '{key}': it stands on line {first} already"


def test_a_key_that_is_no_text_is_refused() -> None:
    for key, named in (("1", "key '1'"), ("on", "key 'on'"), ("[a, b]", "")):
        message = mistake(f"recipe:\n  - {key}: 2\n")
        assert message.startswith("space.yaml:2: ")
        assert message.endswith("is not text to YAML: keys are names, in quotes if need be")
        assert named in message


def test_a_file_that_holds_no_mapping_is_told_what_it_needs_or_shown_what_it_holds() -> None:
    for text in ("", " \n\n", "# only a comment\n", "---\n", "null\n"):
        message = "space.yaml: the file is empty: it needs at least recipe: {data: {dataset: ...}}"
        assert mistake(text) == message, text
    for text, held in (("- a\n- 1\n", '["a", 1]'), ("hello\n", '"hello"'), ("<html>\n<body>", '"<html> <body>"')):
        assert mistake(text) == f"space.yaml: should be a mapping of keys to values, got {held}"


def test_what_is_no_yaml_is_named_with_its_line() -> None:
    tab = "a tab stands here, where YAML allows only spaces"
    for text, at, problem in (
        ("recipe: {data: [}\n", ":1", "while parsing a flow node, expected"),
        ("a: 1\nb: 'x\nc: 2\n", ":4", "while scanning a quoted scalar (begun on line 2), "),
        ("a: 1\n---\nb: 2\n", ":2", "expected a single document"),
        ("a: 1\nb: *nope\n", ":2", "found undefined alias 'nope'"),
        ("a: 1\nb: \x00\n", ":2", "unacceptable character #x0000"),
        ("a: 1\nb: !!python/object:os.system {}\n", ":2", "could not determine a constructor"),
        ("a: &a\n  b: *a\n", "", "nested without end"),
        ("[" * 5000, "", "nested without end"),
        ("recipe:\n\tdata: 1\n", ":2", tab),
        ("recipe: {\n\tdata: 1}\n", ":2", tab),
        ("a: 1\nrecipe:\tx\n", ":2", tab),
        ("a:\t{b: 1}", ":1", tab),
    ):
        assert mistake(text).startswith(f"space.yaml{at}: not valid YAML: {problem}"), text


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    binary = tmp_path / "model.bin"
    binary.write_bytes(bytes(range(256)))
    with pytest.raises(RequestError, match=r"model\.bin: cannot be read as YAML: it is not text in UTF-8$"):
        read_document(binary)
    with pytest.raises(RequestError, match=rf"^{tmp_path}: cannot be read as YAML: Is a directory$"):
        read_document(tmp_path)


def test_a_missing_file_lists_its_neighbours_and_the_closest(tmp_path: Path) -> None:
    for name in ("digits.yaml", "pets.yml", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(RequestError) as caught:
        read_document(tmp_path / "digts.yaml")
    path = tmp_path / "digts.yaml"
    assert str(caught.value) == f"{path}: no such file (there is: digits.yaml, pets.yml); did you mean 'digits.yaml'?"
    with pytest.raises(RequestError, match=r"no/space\.yaml: no such file$"):
        read_document(tmp_path / "no" / "space.yaml")


def test_a_bare_name_is_a_ready_space_unless_a_file_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ready = read_document("digits")
    assert ready.values["recipe"]["data"]["dataset"] == "digits"
    with pytest.raises(RequestError, match=r"^digts: no such file; did you mean 'digits'\?$"):
        read_document("digts")
    (tmp_path / "digits").write_text("recipe: mine\n")
    assert read_document("digits").values == {"recipe": "mine"}


def test_plain_values_survive_pyyaml_and_back() -> None:
    values = {"a": 1e-5, "b": 1e22, "c": ["x", None, True, -3], "d": {"e": "2026-07-01", "f": "010", "g": "yes"}}
    text = yaml.safe_dump({**values, "h": float("inf")}, sort_keys=False)
    assert parse_document(text, "space.yaml").values == {**values, "h": float("inf")}
