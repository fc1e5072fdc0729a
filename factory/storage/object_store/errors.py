"""Failures of object stores: our error for each, and which of them another try may better."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from factory.errors import (
    AccessDeniedError,
    ContentMismatchError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
    UnsafeKeyError,
)
from factory.storage.retry import ExhaustedError, Fault

# Environment variables whose values must never be shown.
_SECRETS = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID",
    "AWS_SSE_CUSTOMER_KEY_BASE64", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_TOKEN",
    "AZURE_STORAGE_CLIENT_SECRET", "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN",
)  # fmt: skip
# Shorter values ("test") would blot out words of the message itself.
_SHORTEST_SECRET = 8


class StoreTerms(NamedTuple):
    """What a kind of object store calls its parts.

    Attributes:
        protocol: What servers speak, such as "S3".
        bucket: Its word for a bucket.
        keys: Environment variables that hold credentials.
        elsewhere: Where else credentials are found.
    """

    protocol: str
    bucket: str
    keys: str
    elsewhere: str


@dataclass(frozen=True)
class FailedCall:
    """What was being done when a call failed.

    Attributes:
        action: A verb phrase, such as "read s3://photos/cat.jpg".
        bucket: Name of the bucket.
        server: The setting storage.endpoint_url, or the name of the default server.
        terms: What this kind of store calls its parts.
        key: The object concerned; "" for the bucket as a whole.
    """

    action: str
    bucket: str
    server: str
    terms: StoreTerms
    key: str = ""


_Rule = Callable[[FailedCall], StorageError]


def _rule(kind: type[StorageError], why: str) -> _Rule:
    """Return what makes an error of a kind; `why` may name parts of a FailedCall and its terms."""

    def make(call: FailedCall) -> StorageError:
        bucket, word = repr(call.bucket), call.terms.bucket
        said = why.format(bucket=bucket, word=word, server=call.server, keys=call.terms.keys,
                          elsewhere=call.terms.elsewhere, protocol=call.terms.protocol)  # fmt: skip
        return kind(f"cannot {call.action}: {said}")

    return make


def _no_key(call: FailedCall) -> StorageError:
    if not call.key:
        return _no_bucket(call)
    return ObjectNotFoundError(f"cannot {call.action}: it does not exist")


_forbidden = _rule(
    AccessDeniedError,
    "the server refused it; check storage.bucket={bucket} and that {keys} are right and may use "
    "that {word}",
)
_no_bucket = _rule(
    ObjectNotFoundError,
    "there is no {word} {bucket} on {server}; correct storage.bucket (or storage.endpoint_url), "
    "or create the {word}",
)
bad_bucket = _rule(
    StorageError,
    "storage.bucket={bucket} is no valid {word} name (3 to 63 lower-case letters, digits, '.' and "
    "'-')",
)
_bad_region = _rule(
    StorageError,
    "the bucket lies in another region; set storage.region to the region of the bucket",
)
_busy = _rule(
    StorageUnavailableError,
    "{server} is overloaded, broken or no {protocol} server; look at its log and try again, or "
    "correct storage.endpoint_url",
)
_full = _rule(StorageError, "no space left on {server}; free some there")
not_its_protocol = _rule(
    StorageError,
    "{server} does not speak {protocol}; correct storage.endpoint_url (some servers have another "
    "port for {protocol} than for their page)",
)
no_credentials = _rule(
    AccessDeniedError, "no credentials found; set {keys} in the environment ({elsewhere})"
)
_WRONG_ID = _rule(
    AccessDeniedError,
    "the server does not know AWS_ACCESS_KEY_ID; set it to a key of this server",
)
_WRONG_SECRET = _rule(
    AccessDeniedError, "AWS_SECRET_ACCESS_KEY does not belong to AWS_ACCESS_KEY_ID; correct it"
)
_EXPIRED = _rule(
    AccessDeniedError, "the credentials have expired; renew {keys} and AWS_SESSION_TOKEN"
)
_CLOCK = _rule(
    AccessDeniedError,
    "this machine's clock is wrong; set it, for requests are signed with the time",
)
_BAD_KEY = _rule(
    UnsafeKeyError, "object stores take no control characters in keys here; rename the object"
)
_UNREACHABLE = _rule(
    StorageUnavailableError,
    "{server} cannot be reached or broke the connection; check storage.endpoint_url, and that the "
    "server runs",
)
_TOO_SLOW = _rule(
    StorageUnavailableError,
    "{server} did not answer in time; check storage.endpoint_url, and that the server runs",
)

_BY_CODE: dict[str, _Rule] = {
    "InvalidAccessKeyId": _WRONG_ID,
    "SignatureDoesNotMatch": _WRONG_SECRET,
    "ExpiredToken": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestTimeTooSkewed": _CLOCK,
    "NoSuchBucket": _no_bucket,
    "ContainerNotFound": _no_bucket,
    "NoSuchKey": _no_key,
    "BlobNotFound": _no_key,
    "InvalidBucketName": bad_bucket,
    "InvalidResourceName": bad_bucket,
    "PermanentRedirect": _bad_region,
    "AuthorizationHeaderMalformed": _bad_region,
    "IllegalLocationConstraintException": _bad_region,
    "SlowDown": _busy,
    "RequestTimeout": _busy,
    "XMinioStorageFull": _full,
    "QuotaExceeded": _full,
}

_BY_STATUS: dict[int, _Rule] = {
    301: _bad_region,
    401: _forbidden,
    403: _forbidden,
    404: _no_key,
    429: _busy,
    507: _full,
}


class _Said(NamedTuple):
    """What the text of an obstore error holds.

    Attributes:
        status: HTTP's status; 0 where no answer came.
        code: The answer's own code.
        message: Its message.
        broken: How the connection failed: "Timeout", "Connect", "Interrupted" …; "" if it did not.
    """

    status: int
    code: str
    message: str
    broken: str


_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>\s*(\w+)\s*</Code>")
_MESSAGE = re.compile(r"<Message>(.*?)</Message>|\"message\":\"(.*?)\"", re.DOTALL)
_BROKEN = re.compile(r"HttpError \{\s+kind: (\w+)")
# An answer with status 200 that holds an error, as S3 has it.
_ERROR_IN_BODY = "Server returned error response"
_REDIRECT = "Received redirect without LOCATION"
# Where the client looks for credentials when nothing else has any.
_MACHINES = ("169.254.169.254", "metadata.google.internal", "169.254.170.2")
# An answer that the client could not make out.
_NO_STORE = ("invalid list response", "Header error", "header missing", "Unable to parse")
_BY_PHRASE = (
    (("Could not parse path",), _BAD_KEY),
    (_NO_STORE, not_its_protocol),
    (_MACHINES, no_credentials),
)


def _said(error: Exception) -> _Said:
    text = str(error)
    status, code, message = (found.search(text) for found in (_STATUS, _CODE, _MESSAGE))
    broken = _BROKEN.search(text)
    number = int(status[1]) if status else 0
    if not number and _ERROR_IN_BODY in text:
        number = 500
    if _REDIRECT in text:
        number = 301
    kind = broken[1] if broken and not number else ""
    if kind and "TimedOut" in text:
        kind = "Timeout"
    return _Said(number, code[1] if code else "", message[1] or message[2] if message else "", kind)


def storage_error(error: Exception, call: FailedCall) -> StorageError:
    """Return the error to raise for what obstore, the SDK or the system raised.

    Its message names the setting at fault and holds no credential.
    """
    if isinstance(error, ExhaustedError):
        found = storage_error(error.cause, call)
        return type(found)(f"{found} ({error.tries.summary})")
    if isinstance(error, ContentMismatchError):
        return ContentMismatchError(f"cannot {call.action}: {error}")
    if isinstance(error, StorageError):  # says all there is to say
        return error
    text = str(error)
    for phrases, rule in _BY_PHRASE:
        if any(phrase in text for phrase in phrases):
            return rule(call)
    return _from_answer(_said(error), error, call)


def _from_answer(said: _Said, error: Exception, call: FailedCall) -> StorageError:
    """Judge an answer by its code first (precise), then by its HTTP status."""
    rule = _BY_CODE.get(said.code) or _BY_STATUS.get(said.status)
    if said.status >= 500:  # noqa: PLR2004 - HTTP's server errors
        rule = rule or _busy
    elif said.broken:
        rule = _TOO_SLOW if said.broken == "Timeout" else _UNREACHABLE
    elif isinstance(error, FileNotFoundError):
        rule = rule or _no_key
    elif isinstance(error, TimeoutError):
        rule = _TOO_SLOW
    if rule is not None:
        return rule(call)
    if said.status:
        answer = f"{said.status} {said.code}".strip()
        return StorageError(
            f"cannot {call.action}: the server answered {answer}: {_scrubbed(said.message)}"
        )
    # The rest of an obstore error is for its developers.
    return StorageError(f"cannot {call.action}: {_scrubbed(str(error).partition(chr(10))[0])}")


def _scrubbed(text: str) -> str:
    for name in _SECRETS:
        value = os.environ.get(name, "")
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, f"<{name}>")
    return text


# Codes that ask for fewer requests, and those of failures that another try may better; from
# botocore's "standard" mode, and what S3 says of uploads that arrived damaged.
_THROTTLING = frozenset(
    ("SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled",
     "RequestThrottledException", "TooManyRequestsException", "RequestLimitExceeded",
     "BandwidthLimitExceeded", "ServiceUnavailable", "ServerBusy")
)  # fmt: skip
_PASSING = frozenset(
    ("RequestTimeout", "RequestTimeoutException", "InternalError", "IncompleteBody", "BadDigest",
     "PriorRequestNotComplete")
)  # fmt: skip
_THROTTLING_STATUS = (429, 503)
# Server errors that stay: what is not implemented, and a disk that is full.
_LASTING_STATUS = (501, 507)
_FULL = frozenset(("XMinioStorageFull", "QuotaExceeded"))


def fault_of(error: Exception) -> Fault | None:
    """Return how a failure may pass; None where another try would fail alike."""
    if isinstance(error, ContentMismatchError):
        return Fault("the bytes do not match their checksum", damaged=True)
    if isinstance(error, StorageError) or any(address in str(error) for address in _MACHINES):
        return None
    status, code, _, broken = _said(error)
    if broken:
        slow = broken == "Timeout"
        why = (
            "no answer in time (storage.timeout_s)" if slow else f"the connection broke ({broken})"
        )
        return Fault(why, timeout=slow)
    throttled = code in _THROTTLING or status in _THROTTLING_STATUS
    if code in _FULL or status in _LASTING_STATUS:
        return None
    if not (throttled or code in _PASSING or status == 408 or status >= 500):  # noqa: PLR2004 - HTTP's request timeout and server errors
        return None
    name = f" {code}" if code and code != str(status) else ""
    return Fault(f"the server said {status}{name}", throttled=throttled)
