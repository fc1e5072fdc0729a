"""Captions become what the models themselves make of them, by every setting there is."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from factory.encoder import TextEncoder, TransformersTextEncoder
from factory.encoder.base import LengthClassEncoder, SizedRowEncoder, Truncating
from factory.errors import ConfigError
from tests.encoder.conftest import WIDTH

Encoders = Callable[..., TransformersTextEncoder]
FAMILIES = ["bert", "t5", "clip", "clip_text", "clip_projected", "siglip", "qwen"]


@pytest.mark.parametrize("kind", FAMILIES)
def test_rows_of_every_family(kind: str, encoder_of: Encoders) -> None:
    encoder = encoder_of(kind)
    fields = encoder.encode(["a cat sat", ""])
    assert fields["embeds"].shape == (2, 9, WIDTH)
    assert fields["mask"].dtype == torch.bool
    # Without special tokens an empty caption keeps one of padding, so as not to be masked whole.
    assert fields["mask"].sum(dim=1).tolist() == ([3, 1] if kind == "qwen" else [5, 2])
    assert ("pooled" in fields) == (kind not in ("t5", "qwen"))
    alone = encoder.encode(["a cat sat"])
    for name, rows in fields.items():
        assert torch.isfinite(rows).all()
        torch.testing.assert_close(rows[:1], alone[name])
    told = sum(field[0].nbytes for field in fields.values())
    pooled = 0 if "pooled" in fields else WIDTH * 4
    projected = WIDTH * 4 // 2 if kind == "clip_projected" else 0
    assert encoder.row_bytes() in (told + pooled, told + projected)


def test_it_keeps_the_contracts(encoder_of: Encoders) -> None:
    encoder = encoder_of("bert")
    for contract in (TextEncoder, LengthClassEncoder, Truncating, SizedRowEncoder):
        assert isinstance(encoder, contract)


def own_output(folder: Path, kind: str, **call: Any) -> Any:
    """Return what a model gives by itself for "a dog" in 6 tokens."""
    import transformers

    module = getattr(transformers, kind).from_pretrained(folder / "text_encoder").eval()
    ids = torch.tensor([[2, 4, 6, 3, 0, 0]])
    with torch.no_grad():
        return module(input_ids=ids, output_hidden_states=True, **call), module


MASK = torch.tensor([[1, 1, 1, 1, 0, 0]])


def test_rows_are_the_models_own_output(
    encoder_of: Encoders, model_folder: Callable[[str], Path]
) -> None:
    fields = encoder_of("bert", max_length=6).encode(["a dog"])
    output, _ = own_output(model_folder("bert"), "BertModel", attention_mask=MASK)
    torch.testing.assert_close(fields["embeds"], output.last_hidden_state)
    torch.testing.assert_close(fields["pooled"], output.pooler_output)
    assert torch.equal(fields["mask"], MASK.bool())


def test_earlier_layers_come_with_and_without_the_last_norm(
    encoder_of: Encoders, model_folder: Callable[[str], Path]
) -> None:
    output, module = own_output(model_folder("clip_text"), "CLIPTextModel", attention_mask=MASK)
    before = encoder_of("clip_text", max_length=6, layer=-2).encode(["a dog"])["embeds"]
    torch.testing.assert_close(before, output.hidden_states[-2])
    normed = encoder_of("clip_text", max_length=6, layer=-2, final_norm=True).encode(["a dog"])
    torch.testing.assert_close(normed["embeds"], module.final_layer_norm(before))


@pytest.mark.parametrize("kind", ["t5", "qwen", "clip_projected"])
def test_the_last_norm_is_found_in_every_family_that_has_one(
    kind: str, encoder_of: Encoders
) -> None:
    plain = encoder_of(kind, layer=-2).encode(["a cat"])["embeds"]
    normed = encoder_of(kind, layer=-2, final_norm=True).encode(["a cat"])["embeds"]
    assert not torch.allclose(plain, normed)


def test_a_norm_or_layer_there_is_not_is_said(encoder_of: Encoders) -> None:
    with pytest.raises(ConfigError, match="BertModel has no norm after its last layer"):
        encoder_of("bert", layer=-2, final_norm=True).encode(["a"])
    with pytest.raises(ConfigError, match=r"layer is -4, and BertModel has 2 layers .* -3 or"):
        encoder_of("bert", layer=-4).encode(["a"])


def test_a_projection_is_given_where_the_class_has_one(
    encoder_of: Encoders, model_folder: Callable[[str], Path]
) -> None:
    output, _ = own_output(
        model_folder("clip_projected"), "CLIPTextModelWithProjection", attention_mask=MASK
    )
    encoder = encoder_of(
        "clip_projected", kind="CLIPTextModelWithProjection", max_length=6, layer=-2,
        pooled="projection",
    )  # fmt: skip
    fields = encoder.encode(["a dog"])
    assert fields["pooled"].shape == (1, 8)
    torch.testing.assert_close(fields["pooled"], output.text_embeds)
    torch.testing.assert_close(fields["embeds"], output.hidden_states[-2])
    with pytest.raises(ConfigError, match="pooled is 'projection', and CLIPTextModel has no such"):
        encoder_of("clip_text", pooled="projection").encode(["a"])


def test_pooled_is_taken_from_the_tokens_that_count(encoder_of: Encoders) -> None:
    found = {
        how: encoder_of("t5", pooled=how).encode(["a cat", "dog"])
        for how in ("none", "first", "last", "mean")
    }
    assert "pooled" not in found.pop("none")
    embeds = found["mean"]["embeds"]
    for row, count in enumerate((4, 3)):
        tokens = embeds[row, :count]
        torch.testing.assert_close(found["first"]["pooled"][row], tokens[0])
        torch.testing.assert_close(found["last"]["pooled"][row], tokens[-1])
        torch.testing.assert_close(found["mean"]["pooled"][row], tokens.mean(dim=0))


def test_padding_is_attended_and_zeroed_when_asked(
    encoder_of: Encoders, model_folder: Callable[[str], Path]
) -> None:
    output, _ = own_output(model_folder("bert"), "BertModel")
    seen = encoder_of("bert", max_length=6, attend_padding=True).encode(["a dog"])
    torch.testing.assert_close(seen["embeds"], output.last_hidden_state)
    assert torch.equal(seen["mask"], MASK.bool())
    zeroed = encoder_of("bert", max_length=6, zero_mask=True).encode(["a dog"])["embeds"]
    plain = encoder_of("bert", max_length=6).encode(["a dog"])["embeds"]
    assert torch.equal(zeroed, plain * MASK[..., None])
    assert plain[0, 5].abs().sum() > 0


def test_a_language_model_pads_at_the_side_its_tokenizer_does(encoder_of: Encoders) -> None:
    left = encoder_of("qwen", max_length=5).encode(["a cat", ""])
    assert left["mask"].tolist() == [[False] * 3 + [True] * 2, [False] * 4 + [True]]
    right = encoder_of("qwen", max_length=5, padding_side="right").encode(["a cat"])
    assert right["mask"].tolist() == [[True] * 2 + [False] * 3]
    torch.testing.assert_close(left["embeds"][0, 3:], right["embeds"][0, :2])


def test_the_tokens_of_a_template_are_dropped(encoder_of: Encoders) -> None:
    encoder = encoder_of(
        "qwen", max_length=4, template="dog dog {caption}", drop_tokens=2, pooled="first"
    )
    fields = encoder.encode(["a cat", ""])
    whole = encoder_of("qwen", max_length=4, padding_side="right").encode(["dog dog a cat"])
    torch.testing.assert_close(fields["embeds"][0, :2], whole["embeds"][0, 2:])
    torch.testing.assert_close(fields["pooled"][0], fields["embeds"][0, 0])
    assert fields["mask"].tolist() == [[True, True, False, False], [True, False, False, False]]


def test_options_reach_the_tokenizer(encoder_of: Encoders) -> None:
    encoder = encoder_of("bert", tokenizer_options={"add_special_tokens": False})
    assert encoder.encode(["a cat"])["mask"].sum() == 2


def test_captions_of_a_class_have_rows_of_its_length(encoder_of: Encoders) -> None:
    encoder = encoder_of("bert", length_classes=[3, 5, 8])
    captions = ["a", "a cat sat", "", "a " * 9, "a cat sat a"]
    assert encoder.length_classes_of(captions).tolist() == [3, 5, 3, 8, 8]
    assert encoder._module is None  # the tokenizer alone tells
    fields = encoder.encode([captions[0], captions[2]])
    assert fields["embeds"].shape == (2, 3, WIDTH)
    longer = encoder.encode(captions)
    assert longer["embeds"].shape == (5, 8, WIDTH)
    torch.testing.assert_close(longer["embeds"][:1, :3], fields["embeds"][:1])
    assert encoder_of("bert").length_classes_of(captions).tolist() == [9] * 5


def test_what_is_cut_is_counted_with_the_longest_example(
    encoder_of: Encoders, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = encoder_of("bert", max_length=4)
    assert encoder.truncations() == []
    with caplog.at_level(logging.WARNING):
        assert encoder.encode(["a cat", "a cat sat"])["embeds"].shape == (2, 4, WIDTH)
        encoder.encode(["a cat sat a dog", "a cat sat a"])
    assert not caplog.records
    (cut,) = encoder.truncations()
    assert (cut.captions, cut.cut, cut.longest, cut.example) == (4, 3, 7, "a cat sat a dog")
    assert "cut 3 of 4 captions to 4 tokens; the longest has 7: 'a cat sat a dog'" in str(cut)
    assert "raise max_length" in str(cut)
    encoder.release()
    assert encoder.truncations() == []


def test_long_examples_are_shortened(encoder_of: Encoders) -> None:
    encoder = encoder_of("bert", max_length=4)
    encoder.encode(["a " * 100])
    assert f"{'a ' * 40}..." in str(encoder.truncations()[0])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_length": 0}, "max_length is 0"),
        ({"drop_tokens": -1}, "drop_tokens is -1"),
        ({"layer": 0}, r"layer is 0; layers are counted from the last"),
        ({"final_norm": True}, "final_norm is for an earlier layer"),
        ({"pooled": "sum"}, "pooled is 'sum'; allowed are 'auto'"),
        ({"padding_side": "top"}, "padding_side is 'top'"),
        ({"template": "Describe:"}, r"template is 'Describe:'; it must hold \{caption\}"),
        ({"length_classes": [8, 4]}, r"length_classes is \[8, 4\]; they must ascend"),
        ({"length_classes": [4], "padding_side": "left"}, "goes with neither length_classes"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TransformersTextEncoder(model="a", **settings)


@pytest.mark.parametrize("kind", ["NoSuchModel", "AutoTokenizer"])
def test_a_class_that_is_no_model_is_refused(encoder_of: Encoders, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"kind is '{kind}', which is no model of transformers"):
        encoder_of("bert", kind=kind).encode(["a"])


def test_code_that_comes_with_a_model_is_refused_without_asking(tmp_path: Path) -> None:
    told = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    (tmp_path / "mine.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(ConfigError, match="code that comes with a model is never run"):
        TransformersTextEncoder(model=str(tmp_path)).row_bytes()
