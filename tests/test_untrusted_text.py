"""Hostile keys and captions in terminals, logs, pages, shells and configs."""

import io
import json
import logging
import shlex
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from rich.table import Table
from rich.text import Text

from factory import compose
from factory.commands.cli import describe
from factory.errors import StorageError
from factory.reports.explain.explain_terminal import show
from factory.reports.explain.explanation import (
    ExplainedSample,
    ExplainedStep,
    Explanation,
    exclude_line,
)
from factory.reports.html import environment
from factory.reports.wording import redact
from factory.sampling.exclusion import Exclude
from factory.untrusted_text import (
    PrintableFormatter,
    config_value,
    json_text,
    printable,
    shell_word,
    terminal,
)

ESCAPE = "\x1b[31mred\x1b[0m\x1b]0;title\x07"
BIDI = "\u202egpj.exe\u2066"
HOSTILE = [
    "a\nb", "a\tb", "a\rb", ESCAPE, BIDI, "\x9b31m", "'", '"', "a'b\"c", "\\", "a\\", "\\'", '\\"',
    "\\\\'", "a,b", "[a]", "{a: b}", "a]", "}", "(x)", "${oc.env:HOME}", "\\${oc.env:HOME}",
    "\\\\${a}", "${", "$", "a${b}\\", " a ", "\ta", "a ", "", "null", "true", "NaN", "inf", "1",
    "1e3", "007", "0x1f", "1_000", "-1", "a=b", "~a", "+a", "a#b", "a: b", "%s", "*", "&a", "!a",
    "@a", "`id`", "$(id)", "日本 語.jpg", "e\u0301.png", "👩\u200d🚀.png", "a\u2028b",
    "\udce9.png", "\x7f", "\x85",
]  # fmt: skip


def controls(text: str) -> list[str]:
    """Return the characters of a text that a terminal may obey."""
    return [
        one for one in text if ord(one) < 32 or 127 <= ord(one) < 160 or one in BIDI[:1] + BIDI[-1]
    ]


def test_every_hostile_key_comes_back_from_a_composed_config() -> None:
    ids = [f"photos:{key}" for key in HOSTILE]
    entries = ", ".join(map(config_value, [*HOSTILE, *ids]))
    cfg = compose([f"data.exclude=[{{from_step: 1, ids: [{entries}]}}]"])
    assert list(cfg.data.exclude[0].ids) == [*HOSTILE, *ids]


@pytest.mark.parametrize("key", [ESCAPE, " '${oc.env:HOME}\\", "a\nb,[c]"])
def test_a_hostile_key_comes_back_from_a_value_of_its_own(key: str) -> None:
    cfg = compose([f"data.backends.photos.prefix={config_value(key)}"])
    assert cfg.data.backends.photos.prefix == key


@given(st.text(min_size=1))
def test_any_text_comes_back_from_omegaconf(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    [override] = OverridesParser.create().parse_overrides([f"+x=[{config_value(text)}]"])
    assert list(OmegaConf.create({"x": override.value()}).x) == [text]


def test_the_line_to_paste_is_printable_and_exact() -> None:
    ids, before = [f"photos:{key}" for key in HOSTILE], [f"a:{key}" for key in HOSTILE]
    line = exclude_line(ids, 7, [Exclude(before, 2)])
    assert not controls(line)
    ran = subprocess.run(["bash", "-c", f"printf %s {line}"], capture_output=True, check=True)
    cfg = compose([ran.stdout.decode(errors="surrogateescape")])
    assert [list(entry.ids) for entry in cfg.data.exclude] == [before, ids]


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_printable_words_are_those_of_shlex(text: str) -> None:
    word = shell_word(text)
    assert not controls(word)
    if not word.startswith("$'"):
        assert shlex.split(word) == [text]


@given(st.text())
def test_nothing_that_terminals_obey_is_left(text: str) -> None:
    shown = printable(text)
    assert not controls(shown)
    shown.encode()  # no half of a surrogate pair, which cannot be written
    assert shown == text or not text.isprintable()


@given(st.dictionaries(st.text(), st.text(st.characters(exclude_categories=[]))))
def test_json_is_printable_and_exact(value: dict[str, str]) -> None:
    text = json_text(value, indent=1)
    assert not controls(text.replace("\n", ""))
    text.encode()  # a file of JSON is UTF-8, whatever the names of files are
    assert json.loads(text) == value


@pytest.mark.parametrize(
    "text", ["日本", "é", "e\u0301", "👩\u200d🚀", "\u0645\u06cc\u200c\u062e", "a\u3000b"]
)
def test_what_people_write_stays(text: str) -> None:
    assert printable(text) == text


def printed(*parts: Any) -> str:
    stream = io.StringIO()
    console = terminal(file=stream, force_terminal=True, width=100)
    for part in parts:
        console.print(part)
    return stream.getvalue()


def test_a_console_prints_foreign_text_as_it_is_written() -> None:
    table = Table(title=f"title {ESCAPE}")
    table.add_column(BIDI)
    table.add_row(Text(ESCAPE + "\x9b2J"))
    said = printed(f"one {ESCAPE}", Text(BIDI, style="bold"), table)
    assert "\x1b]0;" not in said
    assert "\x1b[31m" not in said
    assert not {"\x07", "\x9b", *BIDI[:1], BIDI[-1]} & set(said)
    assert "\x1b[1m" in said  # its own styles work


def test_an_answer_of_explain_is_harmless() -> None:
    sample = ExplainedSample(
        0, 0, key=f"a/{ESCAPE}\nb", caption=f"a {BIDI} cat {ESCAPE}", width=8, height=8
    )
    step = ExplainedStep(
        1, 1, 1, 1, "photos", "8x8", 1, 1, 0, 1, (), None, None, (sample,), (ESCAPE,)
    )
    findings = Explanation(
        "run", "f" * 64, None, (step,), (f"note {ESCAPE}",), exclude_line(["p:" + ESCAPE], 2)
    )
    stream = io.StringIO()
    show(findings, terminal(file=stream, width=200))
    assert controls(stream.getvalue().replace("\n", "")) == []
    assert "\\x1b[31mred" in stream.getvalue()


def test_logs_errors_and_pages_are_harmless() -> None:
    record = logging.LogRecord("factory", logging.INFO, "", 0, "%s: gone\nnext", (ESCAPE,), None)
    line = PrintableFormatter("[x] %(message)s").format(record)
    assert line == "[x] \\x1b[31mred\\x1b[0m\\x1b]0;title\\x07: gone\nnext"
    error = StorageError(f"cannot read {ESCAPE}")
    error.add_note(BIDI)
    assert controls(describe(error).replace("\n", "")) == []
    template = environment().from_string("<p title='{{ bidi }}'><b>{{ escape }}{{ bidi }}</p>")
    assert controls(template.render(bidi=BIDI, escape=ESCAPE)) == []
    assert redact("a\nb") == "a\\nb"


def test_the_runs_own_log_is_written_so() -> None:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from factory.config.compose import HYDRA_VERSION, conf_dir, register

    register()
    with initialize_config_dir(str(conf_dir().resolve()), version_base=HYDRA_VERSION):
        cfg = hydra_compose("config", return_hydra_config=True)
    formatters = cfg.hydra.job_logging.formatters
    named = f"{PrintableFormatter.__module__}.{PrintableFormatter.__qualname__}"
    assert {cfg.hydra.job_logging.handlers[h].formatter for h in ("console", "file")} == {"simple"}
    assert formatters.simple["class"] == named
