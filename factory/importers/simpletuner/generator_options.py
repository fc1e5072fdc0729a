"""Generators of conditioning images, and their settings.

Upstream turns each `conditioning` block of an entry into a set of its own. Settings are written
whether or not a block has them, since the defaults of the two projects differ.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factory.importers.simpletuner.arguments import as_number
from factory.importers.simpletuner.dataset import Dataset, Outcome
from factory.importers.simpletuner.entry import CONDITIONING_TYPES, Entry
from factory.importers.simpletuner.problem import ImportProblem, shown

# Keys of a block are told apart from those of an entry by this.
PREFIX = "conditioning."
# Upstream's names of what there is a generator for, and ours.
GENERATORS = {
    **dict.fromkeys(("superresolution", "super_resolution", "lowres"), "superresolution"),
    **dict.fromkeys(("jpeg_artifacts", "jpeg", "compression"), "jpeg_artifacts"),
    **dict.fromkeys(("random_masks", "masks", "inpainting"), "random_masks"),
    **dict.fromkeys(("canny", "edges"), "canny"),
}
_BEFOREHAND = "make the pictures beforehand, or write a BatchGenerator for generate._target_"
_NO_GENERATOR = {
    **dict.fromkeys(
        ("depth", "depth_map", "depth_midas"), f"there is no model of depth here; {_BEFOREHAND}"
    ),
    **dict.fromkeys(
        ("segmentation", "semantic_segmentation"),
        f"there is no model of segmentation here; {_BEFOREHAND}",
    ),
    **dict.fromkeys(
        ("optical_flow", "flow"), f"there is no model of optical flow here; {_BEFOREHAND}"
    ),
    **dict.fromkeys(
        ("i2v_first_frame", "wan_i2v_first_frame"),
        "there is no set of first frames here: each is the first one of the clip in the batch",
    ),
    **dict.fromkeys(
        ("sdr", "sdr_downsample", "logc3_sdr", "hdr_to_sdr"),
        "pictures are read with 8 bits a colour, so there is no wider range to reduce",
    ),
}
# Upstream's defaults of keys that are numbers; its generators would fail on anything else.
NUMBERS: dict[str, dict[str, float]] = {
    "superresolution": {"blur_radius": 2.0, "noise_level": 0.02, "downscale_factor": 1.0},
    "jpeg_artifacts": {"quality": 25, "compression_rounds": 1},
    "random_masks": {"min_coverage": 0.1, "max_coverage": 0.5},
    "canny": {"low_threshold": 50, "high_threshold": 100},
}
_LISTS = {"jpeg_artifacts": ("quality_range", "quality_list")}
_QUALITIES = {"quality_range": [10, 50], "quality_list": [10, 20, 30, 40]}
_WHITE = 255
# Kinds of masks that are drawn alike here; irregular polygons are not drawn.
_SHAPES = {"rectangle": "rectangle", "circle": "ellipse", "brush": "stroke"}
# Shares of a picture lie between these: a mask of all, or of nothing, is none.
_LEAST_SHARE, _MOST_SHARE = 0.01, 0.99
# Two box blurs of this part of the radius each are what upstream calls "both".
_BOTH = 0.7


def blocks_of(entry: Entry, *, written: bool = False) -> list[Mapping[str, Any]]:
    """Return the blocks of an entry; none where it has none."""
    value = (entry.written if written else entry.filled).get("conditioning")
    listed = value if isinstance(value, list) else [value]
    return [block for block in listed if isinstance(block, Mapping)]


def is_generated(entry: Entry) -> bool:
    """Tell whether an entry stands for a block of another one."""
    return f"{PREFIX}type" in entry.filled


def generated(entry: Entry) -> Iterator[Entry]:
    """Yield an entry for each block of an entry, named as upstream names its set."""
    pairs = zip(blocks_of(entry), blocks_of(entry, written=True), strict=True)
    for filled, written in pairs:
        head = {
            "id": f"{entry.id}_conditioning_{filled.get('type')}",
            "dataset_type": "conditioning",
            "source_dataset_id": entry.id,
        }
        keys = [{**head, **{PREFIX + k: v for k, v in of.items()}} for of in (filled, written)]
        yield Entry(entry.position, keys[0], keys[1], entry.arguments)


def problems(entry: Entry) -> Iterator[ImportProblem]:
    """Yield what is wrong with the blocks of an entry, as far as upstream would fail on it."""
    value = entry.filled.get("conditioning")
    if value is not None and len(blocks_of(entry)) != len(
        value if isinstance(value, list) else [0]
    ):
        text = "conditioning must be an object or a list of objects"
        yield ImportProblem("invalid_type", text)
    for block in blocks_of(entry):
        if not isinstance(block.get("type"), str) or not block["type"].strip():
            yield ImportProblem("missing_key", "conditioning needs a 'type', such as canny")
        yield from _block_problems(block)
        combined = entry.arguments["conditioning_multidataset_sampling"] == "combined"
        # Of captions only false and null mean none, also where what is given is blank.
        named = block.get("caption_strategy") is not None
        if combined and (named or block.get("captions") not in (None, False)):
            text = "conditioning.captions is for sets of which one is drawn, not for "
            yield ImportProblem(
                "unsupported_combination", f"{text}conditioning_multidataset_sampling=combined"
            )


def _block_problems(block: Mapping[str, Any]) -> Iterator[ImportProblem]:
    given = block.get("conditioning_type")
    if given is not None and given not in CONDITIONING_TYPES:
        text = f"conditioning.conditioning_type {shown(given)} is none of "
        yield ImportProblem("invalid_value", text + ", ".join(CONDITIONING_TYPES))
    kind = GENERATORS.get(str(block.get("type")), "")
    for key in NUMBERS.get(kind, {}):
        if block.get(key) is not None and as_number(block[key]) is None:
            text = f"conditioning.{key} must be a number, got {shown(block[key])}"
            yield ImportProblem("invalid_type", text)
    for key in _LISTS.get(kind, ()):
        if block.get(key) is not None and not _numbers(block[key]):
            text = f"conditioning.{key} must be a list of numbers, got {shown(block[key])}"
            yield ImportProblem("invalid_type", text)


def missing(entry: Entry) -> str:
    """Return why a block's set is not made here; "" if it is."""
    kind = str(entry.filled.get(f"{PREFIX}type"))
    if kind not in GENERATORS:
        return _NO_GENERATOR.get(kind, f"no generator is called so here; {_BEFOREHAND}")
    given = _GeneratorBlock(Dataset(entry, "", ""))
    if GENERATORS[kind] == "random_masks" and given.get("output_mode", "mask") != "mask":
        return "masks are made, not pictures with the masked part painted white"
    return ""


def generate(dataset: Dataset, source: Dataset) -> None:
    """Set the generator of a set, its settings and how it belongs to its source."""
    entry = dataset.entry
    kind = GENERATORS[str(entry.filled[f"{PREFIX}type"])]
    dataset.pin("generate", kind)
    dataset.placed[f"{PREFIX}type"] = ["generate"]
    dataset.put("source_dataset_id", "source", source.name)
    # Tensors lie where the source's do, and are made when they are.
    for name in ("image_embeds", "encode_mode"):
        if name in source.body:
            dataset.body[name] = source.body[name]
    block = _GeneratorBlock(dataset)
    _type(block, masks=kind == "random_masks")
    _SETTINGS[kind](block)
    block.leave_out("captions", "samples have the captions of their source in every set")


@dataclass(frozen=True)
class _GeneratorBlock:
    """The keys of one block, and where they go."""

    dataset: Dataset

    def get(self, key: str, standard: Any = None) -> Any:
        value = self.dataset.entry.filled.get(PREFIX + key)
        return standard if value is None else value

    def number(self, key: str) -> float:
        kind = GENERATORS[str(self.get("type"))]
        value = as_number(self.get(key))
        return NUMBERS[kind][key] if value is None else value

    def put(self, key: str, name: str, value: Any, changed: str = "") -> None:
        """Set an option of the generator from a key; say so where it is not one to one."""
        self.dataset.put(PREFIX + key, f"generate.{name}", value)
        if changed:
            self.dataset.note(PREFIX + key, Outcome.changed, f"to `generate.{name}`: {changed}")

    def leave_out(self, key: str, why: str) -> None:
        """Say why a key that is switched on has no counterpart."""
        if self.get(key):
            self.dataset.note(PREFIX + key, Outcome.left_out, why)


def _type(block: _GeneratorBlock, *, masks: bool) -> None:
    dataset = block.dataset
    given = block.get("conditioning_type", "reference_strict")
    kind = "controlnet" if dataset.entry.arguments["controlnet"] else str(given)
    if kind == "reference_loose":
        kind = "reference_strict"
        what = "as reference_strict: what is generated is cut as the picture it is made from"
        dataset.note(f"{PREFIX}conditioning_type", Outcome.changed, what)
    dataset.placed[f"{PREFIX}conditioning_type"] = ["type"]
    dataset.body["type"] = kind  # also where it is the schema's default: options have others
    if masks and kind != "mask":
        what = "to `generate`; edges are hard. They are encoded as pictures are, as upstream "
        what += "does; type=mask gives them as pixels"
        dataset.note(f"{PREFIX}type", Outcome.changed, what)
    elif masks:
        dataset.note(f"{PREFIX}type", Outcome.changed, "to `generate`; edges are hard")


def _superresolution(block: _GeneratorBlock) -> None:
    factor = max(block.number("downscale_factor"), 1.0)
    small = "blurred before it is shrunk, and given its noise while it is small"
    block.put("downscale_factor", "factor", factor, small if factor > 1 else "")
    if factor > 1:
        block.put("downscale_factor", "enlarge", "linear")
    radius, kind = max(block.number("blur_radius"), 0.0), block.get("blur_type", "gaussian")
    box, gauss = {"box": (radius, 0.0), "both": (_BOTH * radius, _BOTH * radius)}.get(
        str(kind), (0.0, radius)
    )
    # A box of 2 r + 1 pixels has the deviation of a Gaussian of ((2 r + 1)^2 - 1) / 12.
    blur = math.sqrt(gauss**2 + ((2 * box + 1) ** 2 - 1) / 12)
    alike = "a Gaussian of the same deviation" if box else ""
    block.put("blur_radius", "blur", round(blur, 3), alike)
    block.put("blur_type", "blur", round(blur, 3), alike)
    noise = max(block.number("noise_level"), 0.0) if block.get("add_noise", True) else 0.0
    for key in ("noise_level", "add_noise"):
        block.put(key, "noise", round(noise * _WHITE, 3))
    block.leave_out(
        "jpeg_quality", "it is not compressed afterwards; jpeg_artifacts is a set apart"
    )


def _jpeg(block: _GeneratorBlock) -> None:
    mode = str(block.get("quality_mode", "fixed"))
    key = {"range": "quality_range", "random": "quality_list"}.get(mode, "quality")
    given: Sequence[Any]
    given = [block.number(key)] if key == "quality" else block.get(key, _QUALITIES[key])
    qualities = [min(max(int(number), 1), 100) for number in _numbers(given)]
    drawn = "drawn from all between the least and the greatest" if mode == "random" else ""
    for name, quality in (("low", min(qualities)), ("high", max(qualities))):
        block.put(key, name, quality, drawn)
        block.put("quality_mode", name, quality)
    if block.number("compression_rounds") > 1:
        block.leave_out("compression_rounds", "it is compressed once")
        block.leave_out("round_quality_decay", "it is compressed once")
    if block.get("subsampling", "4:2:0") != "4:2:0":
        block.leave_out("subsampling", "colours are always kept at half the resolution, 4:2:0")
    for switch, keys in (
        ("pre_blur", ("pre_blur", "pre_blur_radius")),
        ("add_noise", ("add_noise", "noise_level")),
        ("enhance_blocks", ("enhance_blocks", "block_noise_level")),
    ):
        for each in keys if block.get(switch) else ():
            block.leave_out(each, "nothing is done before or after the compression")


def _masks(block: _GeneratorBlock) -> None:
    shares = sorted(block.number(key) for key in ("min_coverage", "max_coverage"))
    least, most = (min(max(share, _LEAST_SHARE), _MOST_SHARE) for share in shares)
    block.put("min_coverage", "least", least)
    block.put("max_coverage", "most", most)
    given = block.get("mask_types")
    if isinstance(given, list):
        shapes = list(dict.fromkeys(_SHAPES[str(each)] for each in given if str(each) in _SHAPES))
        lost = "" if len(shapes) == len(given) else "irregular shapes are not drawn"
        block.put("mask_types", "shapes", shapes or list(_SHAPES.values()), lost)
    for key in ("edge_blur", "edge_blur_radius", "edge_feather"):
        block.leave_out(key, "edges are hard")
    block.leave_out("invert_mask", "white is what is to be painted; invert it where it is used")
    if block.get("mask_value", _WHITE) != _WHITE:
        block.leave_out("mask_value", f"masks are 0 and {_WHITE}")


def _canny(block: _GeneratorBlock) -> None:
    low, high = (max(block.number(key), 0.0) for key in ("low_threshold", "high_threshold"))
    # Of two in the wrong order OpenCV takes the smaller one for the lower.
    block.put("low_threshold", "low", min(low, high))
    block.put("high_threshold", "high", max(low, high))


_SETTINGS: dict[str, Callable[[_GeneratorBlock], None]] = {
    "superresolution": _superresolution,
    "jpeg_artifacts": _jpeg,
    "random_masks": _masks,
    "canny": _canny,
}


def _numbers(value: Any) -> list[float]:
    """Return the numbers of a list; none unless it is one of numbers alone."""
    if not isinstance(value, list):
        return []
    found = [as_number(part) for part in value]
    return [part for part in found if part is not None] if None not in found else []
