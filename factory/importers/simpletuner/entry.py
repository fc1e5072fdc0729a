"""One entry of the config, with upstream's defaults filled in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from factory.importers.simpletuner.arguments import FOLLOWED, Arguments
from factory.importers.simpletuner.dataset_order import sources_of
from factory.importers.simpletuner.keys import PLACES
from factory.importers.simpletuner.variables import Variables, interpolate, substitute

# Upstream's kinds of datasets, and this project's kind of backend; "" where there is none.
KINDS: dict[str, str] = {
    "image": "image",
    "video": "video",
    "eval": "eval",
    "conditioning": "conditioning",
    "text_embeds": "text_embeds",
    "image_embeds": "image_embeds",
    "audio": "",
    "caption": "",
    "conditioning_image_embeds": "",
    "distillation_cache": "",
    "grounding": "",
}
# Kinds that are drawn from for training, and kinds that hold samples at all.
TRAINED = ("image", "video", "audio", "caption")
SAMPLES = ("image", "video", "audio", "eval", "conditioning")
# Kinds that are stored in this project as stores of tensors.
STORES = ("text_embeds", "image_embeds", "conditioning_image_embeds", "distillation_cache")
STORAGES = ("local", "aws", "csv", "huggingface", "webshart", "memory")
CONDITIONING_TYPES = ("controlnet", "mask", "segmentation", "reference_strict", "reference_loose")
# Storages that bring their own captions and metadata.
OWN_METADATA = ("huggingface", "webshart")
# Words that stand for true and false where a switch is written as text.
SWITCHES = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off", ""), False),
}
# Switches of which upstream takes every text that is not blank for true.
TRUTHY = frozenset(
    {
        "crop", "default", "disable_multiline_split", "only_instance_prompt",
        "prepend_instance_prompt", "vae_cache_clear_each_epoch",
    }
)  # fmt: skip
# The second name of a key, which upstream reads where the first is absent.
ALIASES = {"instance_data_dir": "instance_data_root", "text_embeds": "text_embed_cache"}


@dataclass(frozen=True)
class Entry:
    """One dataset of the list.

    Attributes:
        position: Its place in the file, from 1.
        filled: Its keys, with every placeholder filled in: what upstream would see now.
        written: The same as OmegaConf text: the environment is read when a run starts.
        arguments: The trainer's arguments.
    """

    position: int
    filled: Mapping[str, Any]
    written: Mapping[str, Any]
    arguments: Arguments = field(default_factory=Arguments)

    @classmethod
    def of(
        cls,
        position: int,
        raw: Mapping[str, Any],
        arguments: Arguments,
        environment: Mapping[str, str] | None = None,
    ) -> "Entry":
        """Fill in an entry's placeholders."""
        variables = Variables.of(raw, arguments.given, environment)
        filled, written = (_fill(how, raw, variables) for how in (substitute, interpolate))
        return cls(position, filled, written, arguments)

    def get(self, name: str, *, written: bool = False) -> Any:
        """Return a key's value, its alias's, or the argument it follows; None without any."""
        keys = self.written if written else self.filled
        value = keys.get(name)
        if value is None and name in ALIASES:
            value = keys.get(ALIASES[name])
        return self.arguments[name] if value is None and name in FOLLOWED else value

    def block(self, name: str, *, written: bool = False) -> Mapping[str, Any]:
        """Return a block of keys, empty where there is none."""
        value = (self.written if written else self.filled).get(name)
        return value if isinstance(value, Mapping) else {}

    @property
    def dataset_name(self) -> str:
        """The key that names a Hugging Face dataset: its own, or the one of the block."""
        inside = self.block("huggingface").get("dataset_name")
        outside = self.filled.get("dataset_name")
        return "huggingface.dataset_name" if inside and not outside else "dataset_name"

    @property
    def id(self) -> str:
        """The id; "" where there is none."""
        name = self.filled.get("id")
        return name if isinstance(name, str) else ""

    @property
    def title(self) -> str:
        """How messages call the entry."""
        return f"(id={self.id})" if self.id else f"(entry {self.position})"

    @property
    def kind(self) -> str:
        """Upstream's kind; an entry with a `conditioning_type` is a conditioning set."""
        if self.filled.get("conditioning_type") is not None:
            return "conditioning"
        kind = self.filled.get("dataset_type")
        return str("image" if kind is None else kind).lower()

    @property
    def storage(self) -> str:
        """Upstream's type of storage."""
        return str(self.filled.get("type"))

    @property
    def metadata(self) -> str:
        """The metadata backend; `json` and the deprecated `filesystem` mean discovery."""
        if self.storage in OWN_METADATA:
            return str(self.filled.get("metadata_backend") or self.storage)
        name = str(self.filled.get("metadata_backend") or "discovery")
        return "discovery" if name in ("json", "filesystem") else name

    @property
    def strategy(self) -> str:
        """The caption strategy, as upstream would take it."""
        if self.storage in ("csv", *OWN_METADATA) and self.filled.get("caption_strategy") is None:
            return self.storage
        return str(self.get("caption_strategy"))

    @property
    def is_active_at_start(self) -> bool:
        """Tell whether the first step may draw from it."""
        return whole(self.filled.get("start_epoch"), 1) <= 1 and (
            whole(self.filled.get("start_step"), 0) <= 1
        )


def as_switch(value: Any) -> bool | None:
    """Return what true, false, 0, 1 or a word for them says; None where it says neither."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return SWITCHES.get(value.strip().lower())
    return bool(value) if value in (0, 1) else None


def _fill(
    how: Callable[[Any, Variables], Any],
    keys: Mapping[str, Any],
    variables: Variables,
    before: str = "",
) -> dict[str, Any]:
    """Fill in the placeholders of every key, those of the environment where places are named."""
    literal = replace(variables, environment=None)
    found = {}
    for key, value in keys.items():
        if isinstance(value, Mapping):
            found[key] = _fill(how, value, variables, f"{before}{key}.")
        else:
            # A list of filters is texts of captions; a text is the file that they are in.
            is_place = before + key in PLACES and not isinstance(value, list)
            found[key] = how(value, variables if is_place else literal)
    return found


def whole(value: Any, otherwise: int) -> int:
    """Return a number of a window; junk becomes the default, as upstream has it."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return otherwise


def sources(entries: Sequence[Entry]) -> dict[str, str | None]:
    """Return the id of the set each conditioning set belongs to; None where none is named."""
    found = sources_of(entry.filled for entry in entries)
    return {entry.id: found[entry.id] for entry in entries if entry.kind == "conditioning"}
