"""Secrets of a config, and the environment variables that replace them."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from factory.importers.simpletuner.dataset import Dataset

VARIABLES = {
    "aws_access_key_id": "AWS_ACCESS_KEY_ID",
    "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "aws_session_token": "AWS_SESSION_TOKEN",
    "hf_token": "HF_TOKEN",
}
_ENV = re.compile(r"\$\{oc\.env:(\w+),''\}")


def exports(datasets: Sequence[Dataset]) -> list[str]:
    """Return a shell line for each variable to set; none shows a value."""
    lines = {}
    for key, variable in VARIABLES.items():
        for dataset in datasets:
            value = _value(dataset, key)
            if not value or variable in lines:
                continue
            source = _ENV.fullmatch(value)
            if source is None:
                lines[variable] = f"export {variable}=...   # {key} of {dataset.name}"
            elif source[1] != variable:
                lines[variable] = f'export {variable}="${source[1]}"'
    return list(lines.values())


def conflicts(datasets: Sequence[Dataset]) -> Iterator[str]:
    """Yield a remark for each variable that datasets want different values of."""
    for key, variable in VARIABLES.items():
        values = {d.name: _value(d, key) for d in datasets if _value(d, key)}
        if len(set(values.values())) > 1:
            yield (
                f"{variable} is one for the whole run, but {', '.join(values)} have different "
                "ones: give one key access to all of them"
            )


def _value(dataset: Dataset, key: str) -> str:
    written: Any = dataset.entry.written
    value = written.get(key)
    if value is None and key == "hf_token":
        value = dataset.entry.block("webshart", written=True).get(key)
    return "" if value is None else str(value)
