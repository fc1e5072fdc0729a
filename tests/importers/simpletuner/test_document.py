"""Reading JSON files that are, or are not, a config."""

from pathlib import Path

import pytest

from factory.importers.simpletuner import document
from factory.importers.simpletuner.problem import ImportRefusedError


def refusal(path: Path) -> str:
    with pytest.raises(ImportRefusedError) as caught:
        document.read_entries(path)
    assert {problem.category for problem in caught.value.found} == {"unreadable"}
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("  \n", "it is empty"),
        ("hello", "line 1, column 1"),
        ("{}", r"one object, expected a list of datasets: put it into \[ \]"),
        ("3", "holds a number, expected a list"),
        ("null", "holds null"),
        ('[{"id": "a"}, 3, "b", null, [1]]', "entry 2 is a number"),
        ('[{"id": "a"}, 3, "b", null, [1]]', "entry 5 is a list"),
        ('[\n  // photos\n  {"id": "a"}\n]', "line 2, column 3 starts a comment"),
        ('[{"id": "a"} # photos\n]', "starts a comment"),
        ('[{"id": "a"} /* photos */]', "starts a comment"),
        ('[{"id": "a"},]', "comma that nothing comes after"),
        ('[{"id": "a",}]', "comma that nothing comes after"),
        ("[{'id': 'a'}]", "single quotes"),
        ('[{"id": "a"', "line 1"),
        ('[{"id": "a", "id": "b"}]', "sets the key 'id' twice"),
        ('[{"video": {"x": 1, "x": 2}}]', "sets the key 'x' twice"),
        ('[{"x": NaN}]', "number NaN"),
        ('[{"x": -Infinity}]', "number -Infinity"),
        ('[{"x": 1e999}]', "number that is too large"),
        ('[{"x": ' + "9" * 5000 + "}]", "Exceeds the limit"),
        ('[{"x": "\\ud800"}]', "surrogate"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + '{"a":' * 40 + "1" + "}" * 40 + "]", "nested too deeply"),
    ],
)
def test_what_is_no_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "multi.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ImportRefusedError, match=message):
        document.read_entries(path)


def test_a_refusal_never_quotes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "multi.json"
    path.write_text('[{"aws_secret_access_key": "hunter2" "x"}]')
    assert "hunter2" not in refusal(path)


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "multi.json"
    path.write_bytes(b'\xef\xbb\xbf[{"id": "a"}]')
    assert document.read_entries(path) == [{"id": "a"}]


def test_other_encodings_are_refused_with_their_mend(tmp_path: Path) -> None:
    path = tmp_path / "multi.json"
    path.write_bytes('[{"id": "a"}]'.encode("utf-16"))
    assert "UTF-16" in refusal(path)
    path.write_bytes(b'[{"id": "\xe9"}]')
    assert "not UTF-8 at byte 9" in refusal(path)


def test_a_file_beyond_the_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "MAX_BYTES", 2**20)
    path = tmp_path / "multi.json"
    path.write_bytes(b" " * (2**20 + 1))
    assert "larger than 1 MiB" in refusal(path)


def test_absent_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "none.json")
    assert "cannot be read" in refusal(tmp_path)


def test_arguments_are_one_object(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"--seed": 1}')
    assert document.read_arguments(path) == {"--seed": 1}
    path.write_text("[1]")
    with pytest.raises(ImportRefusedError, match="expected an object of arguments"):
        document.read_arguments(path)
