"""Files of an import, and writing them to a folder."""

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from factory.importers.simpletuner import import_report, storage_options
from factory.importers.simpletuner.convert import Conversion
from factory.importers.simpletuner.dataset import Dataset, Outcome
from factory.importers.simpletuner.dataset_names import check_name, file_names
from factory.importers.simpletuner.problem import ImportProblem, ImportRefusedError
from factory.importers.simpletuner.project_options import default

# Texts that every YAML reader takes for a text. All others are quoted: OmegaConf reads more
# things as numbers (1e3) than YAML's own rules do.
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./@-]*(?: [A-Za-z/][A-Za-z0-9_./@-]*)*")
_NOT_PLAIN = frozenset(
    {"true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf", "none"}
)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML is untyped
    """Writes texts quoted where in doubt, and short lists in one line."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        """Indent lists below their key."""
        del indentless
        return super().increase_indent(flow, False)


def _text(dumper: _Dumper, value: str) -> Any:
    plain = _PLAIN.fullmatch(value) and value.lower() not in _NOT_PLAIN
    # Interpolations hold single quotes, which would have to be doubled; and every kind of line
    # end stays itself in double quotes only, where it is escaped.
    quote = '"' if "'" in value or not value.isprintable() else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, None if plain else quote)


def _list(dumper: _Dumper, value: list[Any]) -> Any:
    short = not any(isinstance(part, dict | list) for part in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=short)


def _null(dumper: _Dumper, value: None) -> Any:
    del value
    return dumper.represent_scalar("tag:yaml.org,2002:null", "null")


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)
_Dumper.add_representer(type(None), _null)


def dump(value: Any) -> str:
    """Return a value as YAML, keys in their order, no line folded."""
    return str(
        yaml.dump(
            value,
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=False,
            width=math.inf,
        )
    )


def comment(lines: Iterable[str]) -> str:
    """Return lines as YAML comments."""
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


# Outcomes a reader has to know of beside the values themselves.
_TOLD = (Outcome.changed, Outcome.later, Outcome.left_out, Outcome.unknown)


@dataclass(frozen=True)
class Import:
    """An import that is ready to be written.

    Attributes:
        name: Name of the `data` option.
        source: Name of the file it comes from.
        conversion: What it consists of.
    """

    name: str
    source: str
    conversion: Conversion

    def __post_init__(self) -> None:
        """Refuse a name that Hydra cannot use."""
        check_name(self.name)

    @property
    def exports(self) -> list[str]:
        """Shell lines for the variables that secrets are read from."""
        return storage_options.exports(self.conversion.kept)

    @property
    def warnings(self) -> list[str]:
        """What the run would do otherwise than upstream's as a whole, one sentence each."""
        return [import_report.one_line(text) for text in self.conversion.encoders.warnings]

    @property
    def _encoders(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """The option of each encoder that is carried, and what is set in it."""
        made = self.conversion.encoders
        chosen = {"image": made.image, "text": made.text}
        return {kind: found for kind, found in chosen.items() if found is not None}

    @property
    def remarks(self) -> list[str]:
        """What concerns the whole, one sentence each."""
        found = [
            f"encoder/{kind}={option}"
            + (f" encoder.{kind}.model={_model(values)}" if values else "")
            + ", as the trainer's arguments say"
            for kind, (option, values) in self._encoders.items()
        ]
        found += self.conversion.remarks
        found.append(
            f"sampling={self.conversion.sampling}, as data_backend_sampling says"
            if "data_backend_sampling" in self.conversion.arguments.given
            else f"sampling={self.conversion.sampling}, upstream's default"
        )
        if self.conversion.disabled:
            found.append(f"disabled, not imported: {', '.join(self.conversion.disabled)}")
        found += [
            f"this project has an option data/dataset={name}, so yours is {file}"
            for name, file in self._files.items()
            if name != file
        ]
        found += storage_options.conflicts(self.conversion.kept)
        return [import_report.one_line(text) for text in found]

    def command(self, folder: str) -> str:
        """Return the command that runs it from a folder."""
        parts = ["python train.py", f"--config-dir {shlex.quote(folder)}", f"data={self.name}"]
        if self.conversion.accumulation > 1:
            parts.append(f"trainer.accumulate_grad_batches={self.conversion.accumulation}")
        return " ".join([*parts, *self.conversion.encoders.trainer])

    def files(self, folder: str) -> dict[str, str]:
        """Return the text of every file, by its path below the folder."""
        texts = {f"data/{self.name}.yaml": self._option(folder)}
        for dataset in self.conversion.kept:
            texts[f"data/dataset/{self._files[dataset.name]}.yaml"] = self._dataset(dataset)
        for kind, (option, values) in self._encoders.items():
            if not values:
                continue
            head = "# @package encoder\n" + comment([f"From the arguments beside {self._source}."])
            parts = {"defaults": [option]}, {kind: values}
            texts[f"encoder/{kind}/{self.name}-{kind}.yaml"] = head + _sections(*parts)
        texts[f"data/{self.name}.IMPORT.md"] = self._record(folder)
        return texts

    def _option(self, folder: str) -> str:
        """Return the `data` option."""
        names = list(self._files.values())
        overrides = [{"override /sampling@_global_.sampling": self.conversion.sampling}]
        for kind, (option, values) in self._encoders.items():
            chosen = f"{self.name}-{kind}" if values else option
            overrides.append({f"override /encoder/{kind}@_global_.encoder.{kind}": chosen})
        values = {
            key: value
            for key, value in self.conversion.data.items()
            if value is not None and value != default(f"data.{key}")
        }
        head = [f"From {self._source}: {self.command(folder)}", *self.exports]
        head += [*self.warnings, *self.remarks]
        body: dict[str, object] = {"defaults": ["base", {"dataset": names}, "_self_", *overrides]}
        return comment(head) + _sections(body, values)

    @cached_property
    def _files(self) -> dict[str, str]:
        """The option of each dataset that is imported, in order."""
        names = [dataset.name for dataset in self.conversion.kept]
        files = file_names(names, self.name)
        return {name: files[name] for name in names}

    @property
    def _source(self) -> str:
        return import_report.one_line(self.source)

    def _dataset(self, dataset: Dataset) -> str:
        """Return one dataset's option."""
        head = [f"From {self._source}, entry {dataset.entry.position}."]
        head += [
            f"{row.key or 'name'} {row.outcome}: {row.text}"
            for row in self._rows_of.get(dataset.name, ())
            if row.outcome in _TOLD
        ]
        values = {dataset.name: dataset.body} if dataset.body else {}
        # The header must stay the file's first lines: Hydra looks for it there.
        text = _sections({"defaults": dataset.defaults()}, values)
        return "# @package data.backends\n" + comment(head) + text

    @cached_property
    def rows(self) -> list[import_report.ReportRow]:
        """What came of every key."""
        return import_report.rows(self.conversion)

    @cached_property
    def _rows_of(self) -> dict[str, list[import_report.ReportRow]]:
        """The rows of each dataset, by its name."""
        found: dict[str, list[import_report.ReportRow]] = {}
        for row in self.rows:
            found.setdefault(row.dataset, []).append(row)
        return found

    def _record(self, folder: str) -> str:
        """Return the report as a page."""
        lines = [f"# Import of {self._source}", ""]
        lines += [f"- **{_cell(text)}**" for text in self.warnings]
        lines += ["", "```bash", *self.exports]
        lines += [self.command(folder), "```", ""]
        lines += [f"- {_cell(text)}" for text in self.remarks]
        lines += ["", "| dataset | key | what came of it | |", "|---|---|---|---|"]
        for row in self.rows:
            cells = (row.dataset or "(arguments)", row.key, row.outcome, row.text)
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
        return "\n".join(lines) + "\n"


def _model(values: Mapping[str, Any]) -> str:
    """Return the model that an encoder's settings name, of several parts that of the first."""
    part: Any = values.get("parts")
    return str(next(iter(part.values()))["model"] if part else values["model"])


def _sections(*parts: Mapping[str, object]) -> str:
    return "\n".join(dump(dict(part)) for part in parts if part)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


def write(made: Import, folder: str | Path, *, force: bool = False) -> list[Path]:
    """Write an import into a folder of configs.

    Args:
        made: The import.
        folder: The folder to give as `--config-dir`; made if it is not there.
        force: Whether files may be replaced.

    Returns:
        The files, in the order they were written.

    Raises:
        ImportRefusedError: A file is there already, or cannot be written.
    """
    texts = {Path(folder) / name: text for name, text in made.files(str(folder)).items()}
    there = [path for path in texts if path.exists() or path.is_symlink()]
    if there and not force:
        names = ", ".join(map(str, there))
        raise ImportRefusedError(
            _problems([f"{names}: there already; --force replaces, --name gives another name"])
        )
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink():
                path.unlink()  # never through a link to somewhere else
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        what = f"{error.filename or folder} cannot be written: {error.strerror}"
        raise ImportRefusedError(_problems([what])) from None
    return list(texts)


def _problems(texts: list[str]) -> Iterator[ImportProblem]:
    return (ImportProblem("unreadable", text) for text in texts)
