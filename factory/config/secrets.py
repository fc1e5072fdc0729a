"""Secrets in a config: how they are recognised, and kept out of what is written and shown."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

# The last part of an option's name that holds a secret. Tokens of texts (pad_token, max_tokens) do
# not: only those that open a door.
_PASSWORD = re.compile(
    r"(?:.*_)?(?:secret|secret_key|secret_access_key|access_key|access_key_id|account_key|api_?key"
    r"|private_key|signing_key|encryption_key|password|passwd|passphrase|pwd|credentials?|signature"
    r"|authorization|connection_string)",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"(?:(?:.*_)?(?:access|api|auth|bearer|github|gitlab|hf|hub|hugging_?face|refresh|sas|secret"
    r"|security|session|wandb)_)?token",
    re.IGNORECASE,
)
# Variables of the environment are named after nothing else.
_VARIABLE = re.compile(r"[A-Z0-9_]+_(?:TOKEN|KEY|PASS|PAT|PWD|SECRET)")
# Parameters of URLs that hold a secret, beside those of such a name: signed URLs of S3, Google
# Cloud, CloudFront and Azure, and keys of Google's services.
_PARAMETER = re.compile(
    r"sig|sign|key|code|pass|auth|awsaccesskeyid|key-pair-id|x-(?:amz|goog)-(?:signature|credential"
    r"|security-token)",
    re.IGNORECASE,
)
# User and password of a URL. For the web a user alone is one, too: tokens stand there. A sign of
# a list's end is none of them, as in ['https://h','a@b'].
_BEFORE_AT = r"(?:[^/\s?#'\"]|['\"](?!\s*[,\]}):]))"
_USERINFO = re.compile(
    rf"(?P<before>\b(?:[a-z][a-z0-9+.-]*\+)?https?://)(?!:?@){_BEFORE_AT}+@"
    rf"|(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^/\s@:?#'\"]*:{_BEFORE_AT}+@",
    re.IGNORECASE,
)
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s?#]*[?#]\S*", re.IGNORECASE)
_QUERY = re.compile(r"(?<=[?&;#])([\w.-]+)=([^&;#\s'\"<>]+)")
# Tokens that are known by their form, wherever they stand.
_KNOWN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|A[KS]IA[0-9A-Z]{16}|gh[opusr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}"
    r"|glpat-[\w-]{20,}|sk-[A-Za-z0-9_-]{32,}|xox[abeprs]-[\w-]{10,}|AIza[\w-]{35})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*|(?<=\bBearer )[\w.~+/=-]{8,}"
)
# NAME=VALUE, and NAME: VALUE in a mapping, in texts that show what was given.
_TEXT = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\$\{[^}\s]*\}[^\s,}\]]*"
_GIVEN = re.compile(
    rf"(?P<set>(?P<name>[\w.-]+)=)(?P<value>{_TEXT}|[^\s,}}\]'\"]*[^\s,}}\]'\":;])"
    rf"|(?P<entry>[{{,]\s*['\"]?(?P<key>[\w.-]+)['\"]?\s*:\s*)(?P<text>{_TEXT}|[^,}}\]\n]+)"
)
_INTERPOLATION = re.compile(r"\$\{(?:oc\.env:\s*\w+\s*(?:,(?P<default>[^{}]*))?|[^{}]*)\}")
# Shorter secrets stand in other words by chance, and are no secrets.
_FEWEST_LETTERS = 6


class Secret(NamedTuple):
    """A secret that stands in a config as it is.

    Attributes:
        key: The option.
        value: The secret.
        problem: What is wrong with it, without showing it.
    """

    key: str
    value: str
    problem: str

    @classmethod
    def of(cls, key: str, value: str, what: str = "a secret") -> "Secret":
        """Say what is wrong with a value."""
        problem = (
            f"{key} holds {what}, which every copy of the config would show; set it in the "
            "environment (AWS_SECRET_ACCESS_KEY, HF_TOKEN, …), or read it from there: "
            f"{key}='${{oc.env:NAME}}'"
        )
        return cls(key, value, problem)


def names_secret(option: str) -> bool:
    """Tell whether an option, or the last part of its key, is called as secrets are."""
    return _names(option, _PASSWORD, _TOKEN)


def _names(option: str, *kinds: re.Pattern[str]) -> bool:
    parts = [part for part in re.split(r"[.\[\]]", option.strip()) if not part.isdecimal() and part]
    name = parts[-1].replace("-", "_") if parts else ""
    if _VARIABLE.fullmatch(name):
        return True
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return any(kind.fullmatch(snake) for kind in kinds)


def holds_password(text: str) -> bool:
    """Tell whether a text holds a token, or a URL with a user's password, token or signature."""
    # What is read from the environment is none, as in https://${oc.env:USER}@host.
    return without_passwords(filled := _literal(text, "")) != filled


def without_passwords(text: str) -> str:
    """Return a text without the users, passwords and signatures of URLs in it, and tokens."""
    shown = _USERINFO.sub(lambda found: f"{found['before'] or found['scheme']}…@", text)
    shown = _URL.sub(lambda url: _QUERY.sub(_parameter, url[0]), shown)
    return _KNOWN.sub("…", shown)


def _parameter(found: re.Match[str]) -> str:
    name, value = found.groups()
    secret = (names_secret(name) or _PARAMETER.fullmatch(name)) and _literal(value)
    return f"{name}=…" if secret else found[0]


def masked(override: str) -> str:
    """Return an override as it may be shown: without values of secrets in it."""
    key, equals, value = override.partition("=")
    if equals and names_secret(key.lstrip("+~")) and _literal(value):
        return f"{key}=…"
    return without_secrets(override)


def without_secrets(text: str) -> str:
    """Return a text without passwords, tokens, and values that it gives to what is called so."""
    return without_passwords(_GIVEN.sub(_given, text))


def _given(found: re.Match[str]) -> str:
    before = found["set"] or found["entry"]
    value = (found["value"] or found["text"]).strip()
    secret = names_secret(found["name"] or found["key"]) and _literal(value.strip("'\""))
    # What an entry holds may be a mapping of its own.
    return f"{before}…" if secret and value[0] not in "{[" else before + _GIVEN.sub(_given, value)


def _literal(text: str, unknown: str = "") -> str:
    """Return what of a text is not read from elsewhere: all but interpolations."""

    def replaced(found: re.Match[str]) -> str:
        default = (found["default"] or "").strip(" '\"\\")
        return "" if default == "null" else default or unknown

    while (text := _INTERPOLATION.sub(replaced, before := text)) != before:
        pass
    return text


def without(text: str, secrets: Iterable[Secret]) -> str:
    """Return a text without some secrets, in whichever way it shows what was given."""
    for secret in secrets:
        for shown in {secret.value, repr(secret.value)[1:-1]}:
            if len(shown) >= _FEWEST_LETTERS:
                text = text.replace(shown, "…")
    return without_secrets(text)


def secrets_in(value: Any, key: str) -> Iterator[Secret]:
    """Yield the secrets that stand in a config as they are.

    Args:
        value: The config, or a part of it, as plain values; interpolations unresolved, so that
            what is read from the environment is none.
        key: Where it stands.
    """
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            yield from secrets_in(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str) and value:
        literal = _literal(value)
        if literal and names_secret(key):
            yield Secret.of(key, literal)
        elif holds_password(value):
            what = "a URL with a user, password or signature, or a token"
            yield Secret.of(key, value, what)
    # A token may be a number of a vocabulary; a password of digits is read as a number.
    elif isinstance(value, int) and not isinstance(value, bool) and _names(key, _PASSWORD):
        yield Secret.of(key, str(value))


def written_secrets(cfg: DictConfig, overrides: Iterable[str] = ()) -> list[Secret]:
    """Return the secrets that stand in a config, Hydra's part included, or in overrides of a sweep.

    A sweep's overrides may hold several values, and name options that it goes through.
    """
    values: Any = OmegaConf.to_container(cfg, resolve=False)
    hydra = values.get("hydra", {})
    hydra.pop("overrides", None)  # lines, each of them in the config or below
    hydra.get("job", {}).pop("override_dirname", None)  # the same in one
    found = list(secrets_in(values, ""))
    for override in overrides:
        key, _, value = override.partition("=")
        option = key.lstrip("+~")
        shown = list(secrets_in(value, option))
        if not any(secret.key.startswith(option) for secret in [*found, *shown]):
            # In a mapping, among other values that a sweep goes through.
            shown += [Secret.of(option, value)] if masked(override) != override else []
        found += shown
    return found
