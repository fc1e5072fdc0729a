"""Several text encoders are one: fields by part, joined where asked, under one fingerprint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from factory.encoder import HashedText, SeveralTexts, TextEncoder
from factory.encoder.base import LengthClassEncoder, SizedRowEncoder, Truncating
from factory.errors import ConfigError


@dataclass
class Watched:
    """A text encoder that records what is asked of it."""

    calls: list[str] = field(default_factory=list)
    fingerprint: str = "watched"

    def encode(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Encode, and record."""
        self.calls.append("encode")
        return {"embeds": torch.zeros(len(captions), 2, 3)}

    def offload(self) -> None:
        """Record."""
        self.calls.append("offload")

    def release(self) -> None:
        """Record."""
        self.calls.append("release")


def two() -> dict[str, TextEncoder]:
    return {"small": HashedText(tokens=4, dim=2), "large": HashedText(tokens=4, dim=3)}


def test_fields_are_called_by_their_part() -> None:
    fields = SeveralTexts(parts=two()).encode(["a cat", "a"])
    assert {name: tuple(rows.shape) for name, rows in fields.items()} == {
        "small.embeds": (2, 4, 2), "small.mask": (2, 4), "small.pooled": (2, 2),
        "large.embeds": (2, 4, 3), "large.mask": (2, 4), "large.pooled": (2, 3),
    }  # fmt: skip
    assert torch.equal(fields["large.embeds"], two()["large"].encode(["a cat", "a"])["embeds"])


def test_fields_are_joined_along_their_features_as_sdxl_does() -> None:
    joined = {"embeds": ["small.embeds", "large.embeds"], "mask": ["small.mask"]}
    fields = SeveralTexts(parts=two(), fields=joined).encode(["a cat"])
    assert list(fields) == ["embeds", "mask"]
    parts = [part.encode(["a cat"])["embeds"] for part in two().values()]
    assert torch.equal(fields["embeds"], torch.cat(parts, dim=-1))


def test_it_is_a_text_encoder_that_foretells_its_rows() -> None:
    several = SeveralTexts(parts=two())
    for contract in (TextEncoder, LengthClassEncoder, Truncating, SizedRowEncoder):
        assert isinstance(several, contract)
    rows = several.encode(["a"])
    assert several.row_bytes() == sum(tensor.nbytes for tensor in rows.values())
    with pytest.raises(ConfigError, match="'odd' cannot tell the size of its rows"):
        SeveralTexts(parts={"odd": Watched()}).row_bytes()


def test_captions_go_together_if_their_lengths_agree_in_every_part(
    encoder_of: Callable[..., Any],
) -> None:
    short, long = (encoder_of("bert", length_classes=classes) for classes in ([3, 9], [5, 9]))
    captions = ["a", "a cat", "a cat sat", "a cat sat a", ""]
    several = SeveralTexts(parts={"short": short, "long": long, "plain": HashedText()})
    one, two, three, four, five = several.length_classes_of(captions).tolist()
    assert one == five
    assert two == three
    assert len({one, two, four}) == 3
    assert several.encode(["a cat", "a cat sat"])["long.embeds"].shape[1] == 5
    assert set(SeveralTexts(parts=two_plain()).length_classes_of(captions).tolist()) == {0}


def two_plain() -> dict[str, TextEncoder]:
    return {"one": HashedText(), "other": HashedText(dim=8)}


def test_what_any_part_cuts_is_told(encoder_of: Callable[..., Any]) -> None:
    parts = {"short": encoder_of("bert", max_length=3), "long": encoder_of("bert")}
    several = SeveralTexts(parts=parts)
    several.encode(["a cat"])
    assert [cut.tokens for cut in several.truncations()] == [3]
    several.release()
    assert several.truncations() == []
    assert all(part._module is None for part in parts.values())


def test_parts_leave_the_device_after_each_batch_only_when_asked() -> None:
    part, other = Watched(), Watched()
    SeveralTexts(parts={"one": part, "other": other}).encode(["a"])
    assert part.calls == ["encode"]
    SeveralTexts(parts={"one": part, "other": other}, offload=True).encode(["a"])
    assert part.calls == ["encode", "encode", "offload"]


def test_parts_that_cannot_wait_in_memory_are_released() -> None:
    class Held(HashedText):
        released = 0

        def release(self) -> None:
            type(self).released += 1

    SeveralTexts(parts={"one": Held()}, offload=True).encode(["a"])
    assert Held.released == 1


def test_one_fingerprint_tells_parts_and_fields_apart_and_not_their_order() -> None:
    parts = two()
    others = [
        SeveralTexts(parts=parts),
        SeveralTexts(parts={**parts, "small": HashedText(tokens=4, dim=5)}),
        SeveralTexts(parts={"tiny": parts["small"], "large": parts["large"]}),
        SeveralTexts(parts=parts, fields={"embeds": ["small.embeds", "large.embeds"]}),
        SeveralTexts(parts=parts, fields={"embeds": ["large.embeds", "small.embeds"]}),
    ]
    assert len({several.fingerprint for several in others}) == len(others)
    turned = SeveralTexts(parts=dict(reversed(parts.items())), offload=True)
    assert turned.fingerprint == others[0].fingerprint


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"parts": {}}, "parts is empty"),
        ({"parts": {"a.b": HashedText()}}, "names of parts hold no dot"),
        ({"fields": {"embeds": ["clip.embeds"]}}, r"fields.embeds is \['clip.embeds'\]; .* small"),
        ({"fields": {"embeds": []}}, r"fields.embeds is \[\]"),
    ],
)
def test_wrong_names_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SeveralTexts(**{"parts": two(), **settings})


def test_fields_that_are_not_there_or_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"names 'small\.states', which its part does not give"):
        SeveralTexts(parts=two(), fields={"x": ["small.states"]}).encode(["a"])
    parts = {"small": HashedText(tokens=4), "large": HashedText(tokens=5)}
    joined = {"embeds": ["small.embeds", "large.embeds"]}
    with pytest.raises(ConfigError, match=r"small.embeds \[4, 64\], large.embeds \[5, 64\]"):
        SeveralTexts(parts=parts, fields=joined).encode(["a"])
