"""The order in which entries of a SimpleTuner config are taken."""

from typing import Any

import pytest

from factory.importers.simpletuner.dataset_order import sort_entries
from factory.importers.simpletuner.problem import ImportRefusedError

GOLDEN = "dependency_sort.json"


def test_sort(case: dict[str, Any]) -> None:
    expected = case.get("recommended", case["expected"])
    if "error" in expected or expected.get("accept") is False:
        with pytest.raises(ImportRefusedError) as caught:
            sort_entries(case["inputs"])
        (problem,) = caught.value.found
        if "message" in expected:
            assert problem.category == "circular_dependency"
            assert problem.message.startswith(expected["message"])
        return
    got = sort_entries(case["inputs"])
    assert [entry.get("id") for entry in got] == expected["order"]
    if "order_markers" in expected:
        assert [e.get("marker", e.get("id")) for e in got] == expected["order_markers"]
