"""HashedText: equal captions give equal bytes in any batch, process and platform."""

import hashlib
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factory.encoder import HashedText, TextEncoder
from factory.encoder.hashed_text import words_of
from factory.errors import ConfigError


def digest(encoder: HashedText, caption: str) -> str:
    fields = encoder.encode([caption])
    parts = (fields[name].view(torch.uint8).numpy().tobytes() for name in sorted(fields))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_bytes_are_the_same_for_ever() -> None:
    # Written down once: only integers and correctly rounded operations are used.
    found = digest(HashedText(tokens=4, dim=8), "A cat, sleeping")
    assert found == "d1e4f5b9702c8f0d5e4eebe2c3e4dc44a71b7a843a323bb3cec1f7a7701727db"


def test_bytes_are_the_same_in_another_process() -> None:
    code = (
        "from factory.encoder import HashedText; import sys;"
        "f = HashedText(dim=16).encode(['two words']);"
        "sys.stdout.write(f['embeds'].numpy().tobytes().hex())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=500
    )
    assert run.stdout == HashedText(dim=16).encode(["two words"])["embeds"].numpy().tobytes().hex()


@given(st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_a_caption_does_not_depend_on_its_batch(captions: list[str]) -> None:
    encoder = HashedText(tokens=6, dim=8)
    together = encoder.encode(captions)
    for row, caption in enumerate(captions):
        alone = encoder.encode([caption])
        assert all(torch.equal(together[name][row], alone[name][0]) for name in together)
    assert together["mask"].any(dim=1).all()


def test_shapes_dtypes_and_padding() -> None:
    fields = HashedText(tokens=5, dim=12).encode(["one two three", "one", ""])
    assert fields["embeds"].shape == (3, 5, 12)
    assert fields["pooled"].shape == (3, 12)
    assert fields["embeds"].dtype == fields["pooled"].dtype == torch.float16
    assert fields["mask"].dtype == torch.bool
    assert fields["mask"].sum(dim=1).tolist() == [3, 1, 1]
    assert not fields["embeds"][~fields["mask"]].any()


def test_no_words_give_a_null_token_of_its_own() -> None:
    encoder = HashedText()
    empty = encoder.encode(["", "  ", "!?"])
    assert torch.equal(empty["embeds"][0], empty["embeds"][1])
    assert torch.equal(empty["embeds"][0], empty["embeds"][2])
    assert empty["embeds"][0, 0].any()
    assert not torch.equal(empty["embeds"][0], encoder.encode(["null"])["embeds"][0])


def test_order_of_words_shows_in_embeds_only() -> None:
    fields = HashedText().encode(["dog bites man", "man bites dog"])
    assert not torch.equal(fields["embeds"][0], fields["embeds"][1])
    assert torch.equal(fields["pooled"][0], fields["pooled"][1])


def test_words_beyond_the_length_are_dropped() -> None:
    encoder = HashedText(tokens=2)
    short, long = (encoder.encode([caption]) for caption in ("a b", "a b c"))
    assert all(torch.equal(short[name], long[name]) for name in short)


def test_numbers_look_normal() -> None:
    embeds = HashedText(tokens=1, dim=64, dtype="float32").encode([f"w{i}" for i in range(300)])
    values = embeds["pooled"]
    assert abs(values.mean().item()) < 0.03
    assert abs(values.std().item() - 1) < 0.03
    assert abs((values.abs() > 1.96).float().mean().item() - 0.05) < 0.01


def test_words_join_forms_and_drop_case_and_punctuation() -> None:
    assert words_of("A  Straße, ﬁne—ÉTÉ!") == ["a", "strasse", "fine", "été"]
    assert words_of("E\u0301te\u0301") == words_of("été")


@pytest.mark.parametrize("settings", [{"tokens": 0}, {"dim": 0}, {"dtype": "int8"}])
def test_settings_out_of_range_are_named(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        HashedText(**settings)  # type: ignore[arg-type]


def test_fingerprint_tells_settings_apart() -> None:
    encoders = [HashedText(), HashedText(tokens=3), HashedText(dim=3), HashedText(dtype="float32")]
    assert len({encoder.fingerprint for encoder in encoders}) == 4


def test_keeps_the_contract_and_travels() -> None:
    encoder = HashedText(tokens=3)
    assert isinstance(encoder, TextEncoder)
    assert pickle.loads(pickle.dumps(encoder)) == encoder
    encoder.release()


def test_the_package_imports_without_torch() -> None:
    code = "import factory.encoder, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=500, check=False).returncode == 0
    import factory.encoder

    with pytest.raises(AttributeError, match="Nothing"):
        _ = factory.encoder.Nothing
