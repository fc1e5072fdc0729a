"""Entries of SimpleTuner configs, for tests."""

from typing import Any

from factory.importers.simpletuner.convert import Conversion, Launch, convert
from factory.importers.simpletuner.dataset import Dataset
from factory.importers.simpletuner.problem import ImportRefusedError


def entry(**keys: Any) -> dict[str, Any]:
    """Return an entry of local pictures; None takes a key away."""
    shared = {"id": "d", "type": "local", "instance_data_dir": "/data/d"}
    return {key: value for key, value in {**shared, **keys}.items() if value is not None}


def converted(
    *entries: dict[str, Any], args: dict[str, Any] | None = None, **launch: Any
) -> Conversion:
    """Convert entries without looking at folders."""
    return convert(entries, args, Launch(**launch), paths=False, environment={})


def one(args: dict[str, Any] | None = None, **keys: Any) -> Dataset:
    """Convert one entry."""
    return converted(entry(**keys), args=args).datasets[0]


def categories(*entries: dict[str, Any], args: dict[str, Any] | None = None) -> list[str]:
    """Return the categories of all problems of a config; none if it is accepted."""
    try:
        converted(*entries, args=args)
    except ImportRefusedError as error:
        return [problem.category for problem in error.found]
    return []
