"""Backends come after what they need, and what cannot be ordered is refused with advice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import ConfigError
from factory.registry.build_order import build_order


def test_a_source_comes_before_what_depends_on_it() -> None:
    needs = {"edges": {"source": "photos", "image_embeds": "latents"}, "photos": {}, "latents": {}}
    assert build_order(needs) == ["photos", "latents", "edges"]


def test_otherwise_the_listed_order_is_kept() -> None:
    assert build_order({"c": {}, "a": {}, "b": {"source": "c"}}) == ["c", "a", "b"]
    assert build_order({}) == []


@given(st.permutations(range(6)), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5))))
def test_any_net_without_a_circle_is_ordered(
    listed: list[int], links: list[tuple[int, int]]
) -> None:
    needs: dict[str, dict[str, str]] = {str(n): {} for n in listed}
    for one, other in links:
        if one > other:  # no circle can close
            needs[str(one)][f"field{other}"] = str(other)
    order = build_order(needs)
    assert sorted(order) == sorted(needs)
    for name, fields in needs.items():
        assert all(order.index(other) < order.index(name) for other in fields.values())


def test_every_unknown_name_is_reported_with_a_suggestion() -> None:
    needs = {"a": {"source": "phtos"}, "photos": {"text_embeds": "zzz"}}
    with pytest.raises(ConfigError) as caught:
        build_order(needs)
    first, second = caught.value.problems
    assert first == (
        "data.backends.a.source names 'phtos', which is no backend; did you mean 'photos'? "
        "backends are a, photos"
    )
    assert second.startswith("data.backends.photos.text_embeds names 'zzz', which is no backend; b")


def test_a_circle_is_shown_with_the_links_that_could_be_changed() -> None:
    needs = {"x": {"source": "a"}, "a": {"source": "b"}, "b": {"source": "c"}, "c": {"source": "a"}}
    with pytest.raises(ConfigError) as caught:
        build_order(needs)
    assert str(caught.value) == (
        "backends depend on each other in a circle: a -> b -> c -> a; change "
        "data.backends.a.source or data.backends.b.source or data.backends.c.source"
    )


def test_a_backend_that_names_itself_is_a_circle() -> None:
    with pytest.raises(ConfigError, match=r"a -> a; change data\.backends\.a\.source$"):
        build_order({"a": {"source": "a"}})
