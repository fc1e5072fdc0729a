"""What a secret in a config looks like, and how it is kept out of what is written and shown."""

import re
from collections.abc import Iterator
from typing import Any

# The last part of an option's name that holds a secret. Tokens of texts (pad_token, max_tokens) do
# not: only those that open a door.
_NAME = re.compile(
    r"(?:.*_)?(?:secret|secret_key|secret_access_key|access_key|access_key_id|api_?key|private_key"
    r"|password|passwd|passphrase|credentials?)"
    r"|(?:(?:.*_)?(?:access|api|auth|bearer|github|hf|hub|hugging_?face|refresh|session|wandb)_)?token",
    re.IGNORECASE,
)
# User and password of a URL. For the web a user alone is one, too: tokens stand there.
_USERINFO = re.compile(
    r"(?P<before>\b(?:[a-z][a-z0-9+.-]*\+)?https?://)[^/\s@'\"]+@"
    r"|(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^/\s@:'\"]*:[^/\s@'\"]+@",
    re.IGNORECASE,
)


def names_secret(option: str) -> bool:
    """Tell whether an option, or the last part of its key, is called as secrets are."""
    return _NAME.fullmatch(option.strip().rpartition(".")[2]) is not None


def holds_password(text: str) -> bool:
    """Tell whether a text holds a URL with a user's password or token."""
    return _USERINFO.search(text) is not None


def without_passwords(text: str) -> str:
    """Return a text without the users and passwords of URLs in it."""
    return _USERINFO.sub(lambda found: f"{found['before'] or found['scheme']}…@", text)


def masked(override: str) -> str:
    """Return an override as it may be shown: without the value of what is called a secret."""
    key, equals, _ = override.partition("=")
    if equals and names_secret(key.lstrip("+~")):
        return f"{key}=…"
    return without_passwords(override)


def secrets_in(value: Any, key: str) -> Iterator[str]:
    """Yield what is wrong with secrets that stand in a config as they are.

    Args:
        value: The config, or a part of it, as plain values; interpolations unresolved, so that
            what is read from the environment is none.
        key: Where it stands.
    """
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            yield from secrets_in(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str) and value and "${" not in value:
        if names_secret(key):
            yield (
                f"{key} holds a secret, which every copy of the config would show; set it in the "
                f"environment (AWS_SECRET_ACCESS_KEY, HF_TOKEN, …), or read it from there: "
                f"{key}='${{oc.env:NAME}}'"
            )
        elif holds_password(value):
            yield (
                f"{key} holds a URL with a user or password, which every copy of the config would "
                f"show; take them out, or read the URL from the environment: "
                f"{key}='${{oc.env:NAME}}'"
            )
