"""Composing a config from overrides, and advice where Hydra refuses them."""

import copy
import difflib
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import get_args, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from factory.config import hydra_speed, plugins, schema
from factory.config.secrets import masked
from factory.config.signatures import arguments_of
from factory.errors import ConfigError
from factory.untrusted_text import shell_word

HYDRA_VERSION = "1.3"
_NO_CHOICE = "Config group override must be"
# Options that other options extend or that fit only a slot; nobody chooses them for a run.
NOT_CHOSEN = ("base", "inherit")
# Brackets of lists and mappings in overrides.
_CLOSING = {"[": "]", "{": "}"}


def conf_dir() -> Path:
    """Return the folder of config groups: in the installed package, or in the checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def register() -> None:
    """File schemas, resolvers and plugins with Hydra; safe to call twice."""
    hydra_speed.apply()
    schema.register()
    plugins.load()


def compose(
    overrides: Sequence[str] = (),
    *,
    config_name: str = "config",
    config_dir: str | Path | None = None,
) -> DictConfig:
    """Compose a config as `python train.py OVERRIDES` does.

    Args:
        overrides: What would stand on the command line, such as ["data=multi"].
        config_name: The primary config.
        config_dir: A folder of your own configs, searched after the factory's groups: an option
            of its own name is never hidden, so give yours another.

    Returns:
        The composed config, typed by its schemas.

    Raises:
        ConfigError: Unknown keys, options or types, all of them at once; or `config_dir` is
            no folder.
    """
    register()
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(
            f"config_dir={str(config_dir)!r} is no folder; give one with groups in it"
        )
    composer = Composer(config_name, config_dir)
    try:
        return composer.compose(overrides)
    except YAMLError as error:
        raise ConfigError(f"a YAML file cannot be read: {tidy(error)}") from None
    except (HydraException, OmegaConfBaseException) as error:
        problems, _ = _refused(overrides, composer)
        raise ConfigError(problems or [tidy(error)]) from None


def refusals(
    overrides: Sequence[str], config_dir: str | Path | None = None
) -> tuple[list[str], list[str]]:
    """Return what is wrong with overrides of the factory's own config, and those accepted."""
    register()
    return _refused(overrides, Composer("config", config_dir))


class Composer:
    """Composes configs of one primary config: each set of options once, with values set after.

    Files are read once, so it lives no longer than they can be trusted not to change.
    """

    def __init__(self, config_name: str, config_dir: str | Path | None) -> None:
        """Compose nothing yet."""
        self._name = config_name
        self._fixed: list[str] = []
        if config_dir is not None:
            quoted = str(Path(config_dir).resolve()).replace("'", r"\'")
            self._fixed = [f"hydra.searchpath=['file://{quoted}']"]
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return the config of overrides; raises what Hydra raises."""
        options, values = hydra_speed.apart(overrides)
        if (key := tuple(options)) not in self._composed:
            self._composed[key] = self._whole(options)
        config = copy.deepcopy(self._composed[key])
        hydra_speed.set_values(config, values)
        return config

    def composes(self, overrides: Sequence[str]) -> bool:
        """Tell whether overrides are accepted."""
        try:
            self.compose(overrides)
        except (HydraException, OmegaConfBaseException):
            return False
        return True

    def _whole(self, overrides: Sequence[str]) -> DictConfig:
        with initialize_config_dir(str(conf_dir().resolve()), version_base=HYDRA_VERSION):
            try:
                return hydra_compose(self._name, overrides=[*overrides, *self._fixed])
            except ValueError as error:
                if not is_no_choice(error):
                    raise
                raise ConfigCompositionException(str(error)) from error


def is_no_choice(error: ValueError) -> bool:
    """Tell whether an error is Hydra's word on a group that is set to null or to a mapping."""
    return str(error).startswith(_NO_CHOICE)


def _refused(overrides: Sequence[str], composer: Composer) -> tuple[list[str], list[str]]:
    """Return what is wrong with each override, by trying them one by one, and what is right.

    Hydra stops at the first refusal; a user wants to hear of all of them. Choices of options
    come first, since values may belong to what they bring.
    """
    problems: list[str] = []
    accepted: list[str] = []
    for override in sorted(overrides, key=_is_value):
        try:
            composer.compose([*accepted, override])
        except (HydraException, OmegaConfBaseException) as error:
            problems.append(_advice(override, error, accepted, composer))
        else:
            accepted.append(override)
    return problems, accepted


def _is_value(override: str) -> bool:
    key = override.partition("=")[0]
    return "." in key.partition("@")[0]


def _advice(override: str, error: Exception, accepted: Sequence[str], composer: Composer) -> str:
    key = override.partition("=")[0].lstrip("+~")
    plain = override.lstrip("+")
    if plain != override and composer.composes([*accepted, plain]):
        override, plain = masked(override), shell_word(masked(plain))
        return f"{override}: {key} is there already, so it is not added; write {plain}"
    override = masked(override)
    if not isinstance(error.__cause__, OmegaConfBaseException) or re.search("[@/]|^$", key):
        return f"{override}: {tidy(error)}" if key else quoting_advice(override)
    parent, _, name = key.rpartition(".")
    try:
        node = OmegaConf.select(composer.compose(accepted), parent or "")
    except (HydraException, OmegaConfBaseException):
        node = None
    known = [str(option) for option in node] if isinstance(node, DictConfig) else []
    if isinstance(node, DictConfig) and OmegaConf.get_type(node) is dict and name not in known:
        taken = arguments_of(str(OmegaConf.select(node, "_target_"))) if known else {name}
        if name in (taken or ()):
            return f"{override}: {parent} has no {name!r} yet; write {shell_word(f'+{override}')}"
    if known and name not in known:
        return (
            f"{override}: {parent or 'the config'} has no option {name!r}; {suggest(name, known)}"
        )
    if key.startswith("hydra.") and composer.composes([*accepted, f"+{key}=0"]):
        return f"{override}: {parent} has no {name!r} yet; write {shell_word(f'+{override}')}"
    # The override says its key already.
    return f"{override}: {tidy(error.__cause__).replace(f'; full_key: {key}', '')}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean X? options are X, Y" for a name that is not known."""
    listed = sorted(option for option in known if not option.startswith("_"))
    guess = difflib.get_close_matches(name, listed, n=1, cutoff=0.5)
    hint = f"did you mean {guess[0]!r}? " if guess else ""
    return f"{hint}options are {', '.join(listed)}"


def tidy(error: Exception) -> str:
    """Return a Hydra or OmegaConf message in one line, with a suggestion where one fits."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    missing = re.search(r"Could not find '([^']+)/([^'/]*)'", str(error))
    if missing:
        return _unknown_option(missing.group(1), missing.group(2), lines)
    kept = [line for line in lines if not line.startswith(("object_type=", "reference_type="))]
    message = "; ".join(kept)
    slot_only = re.search(r"In 'schema/storage/(\w+)'.*'storage' not in 'StorageConfig'", message)
    if slot_only:
        return f"it fits a slot only; set storage@data.backends.NAME={slot_only[1]}"
    unknown = re.search(r"Key '(\w+)' not in '(\w+)'", message)
    if unknown:
        name, kind = unknown.groups()
        known = [option for cls in _schemas(kind) for option in _options(cls)]
        if known:
            return f"there is no option {name!r}; {suggest(name, known)}"
    choice = re.search(r"Invalid value '(.*?)', expected one of \[(.*?)\]", message)
    near = choice and difflib.get_close_matches(choice[1], choice[2].split(", "), n=1)
    if near:
        return f"{message}; did you mean {near[0]!r}?"
    if message.startswith(_NO_CHOICE):
        return f"{message}; choose an option of the group (`--help` lists them)"
    return _grammar(error, message) or _shape(message) or message


def _grammar(error: Exception, message: str) -> str:
    """Return advice where Hydra cannot read an override, or what several say together; else ""."""
    if isinstance(error, OverrideParseException):
        return quoting_advice(masked(error.override))
    if ambiguous := re.search(r"Ambiguous value for argument '(.*)'; 1\.", message):
        return quoting_advice(masked(ambiguous[1]))
    if kept := re.search(r"Could not delete from config. The value of '([^']+)' is", message):
        return f"its value is another; ~{kept[1]} takes it away whatever it is"
    return ""


def _shape(message: str) -> str:
    """Return advice where a list, or an entry of one, is given as something else; else ""."""
    entry = re.search(r"is not a subclass of (\w+)\. value: (.*?); full_key: (\S+)", message)
    if entry:
        known = [option for cls in _schemas(entry[1]) for option in _options(cls)]
        listed = ", ".join(f"{option}: …" for option in known if not option.startswith("_"))
        return f"{entry[3]} must be a mapping {{{listed}}}, got {entry[2]!r}" if listed else ""
    plain = re.search(r"is not a ListConfig, list or tuple.*full_key: (\S+)", message)
    if plain:
        return f"{plain[1]} must be a list, with [ ] around what it holds"
    if "Cannot merge DictConfig with ListConfig" in message:
        return "it must be a list of mappings: put [ ] around the { }"
    return ""


def _unknown_option(group: str, option: str, lines: Sequence[str]) -> str:
    """Return advice from Hydra's listing of a group, one option a line, tab-indented."""
    start = next((n for n, line in enumerate(lines) if line.startswith("Available options")), None)
    if start is None:
        return f"there is no option {option!r} in group {group}"
    rest = iter(lines[start + 1 :])
    known = takewhile(lambda line: not line.startswith("Config search"), rest)
    choosable = [name for name in known if name not in NOT_CHOSEN]
    return f"group {group} has no option {option!r}; {suggest(option, choosable)}"


def _schemas(name: str) -> Iterator[type]:
    """Yield the schemas of a name, those of entries of lists and mappings among them."""
    found = [cls for cls in schema.SCHEMAS.values() if is_dataclass(cls)]
    for cls in found:
        if cls.__name__ == name:
            yield cls
        hints = get_type_hints(cls).values()
        parts = [part for hint in hints for part in (hint, *get_args(hint))]
        parts = [part for part in parts if isinstance(part, type) and is_dataclass(part)]
        found += [part for part in parts if part not in found]


def _options(cls: type) -> list[str]:
    return [option.name for option in fields(cls)] if is_dataclass(cls) else []


def quoting_advice(override: str) -> str:
    """Return what to write instead of an override that Hydra cannot read."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        return (
            f"{override!r} is no KEY=VALUE (`--help` lists them); a value with spaces needs "
            "quotes around it all, as in 'KEY=some words'"
        )
    found = [f"{key}={text}" for text in _candidates(value) if _reads(f"{key}={text}")]
    if found and _is_sweep(override):
        one, several = map(_for_shell, found)
        return f"for one text write {one}, for a list {several}"
    if found:
        return f"Hydra takes this only with quotes inside: {_for_shell(found[0])}"
    return f"Hydra cannot read the key {key!r}; keys are names with dots between, as in a.b=VALUE"


def _candidates(value: str) -> Iterator[str]:
    """Yield a value with quotes around texts of its list or mapping, then around all of it."""
    closing = _CLOSING.get(value[:1])
    if closing and value.endswith(closing) and (parts := _split(value[1:-1])):
        if closing == "]":
            yield f"[{','.join(map(_quoted_text, parts))}]"
        elif all(":" in part for part in parts):
            pairs = (part.partition(":") for part in parts)
            yield f"{{{','.join(f'{name}:{_quoted_text(text)}' for name, _, text in pairs)}}}"
    yield _quoted(value)
    yield f"[{','.join(map(_quoted_text, _split(value)))}]"


def _split(text: str) -> list[str]:
    """Split at commas outside of brackets; nothing if these do not match."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "[{(") - (sign in "]})")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [] if depth else parts


def _quoted_text(text: str) -> str:
    return text if _reads(f"a={text}") else _quoted(text.strip())


def _quoted(text: str) -> str:
    return QuotedString(text=text, quote=Quote.double).with_quotes()


def _reads(override: str) -> bool:
    return _is_sweep(override) is False


def _is_sweep(override: str) -> bool | None:
    """Tell whether an override stands for several values; None where Hydra cannot read it."""
    try:
        return OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException:
        return None


def _for_shell(text: str) -> str:
    return shlex.quote(text) if "'" in text else f"'{text}'"
