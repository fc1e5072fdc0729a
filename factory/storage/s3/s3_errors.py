"""Failures of S3 clients: our error for each, and which of them another try may better."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from factory.errors import (
    AccessDeniedError,
    ContentMismatchError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from factory.storage.retry import ExhaustedError, Fault, retry_after

# The environment variables whose values must never be shown.
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")

_KEYS = "AWS_ACCESS_KEY_ID / AWS_SECRET_ACCESS_KEY"

# Shorter values ("test") would blot out words of the message itself.
_SHORTEST_SECRET = 8


@dataclass(frozen=True)
class FailedCall:
    """What was being done when a call failed.

    Attributes:
        action: A verb phrase, such as "read s3://photos/cat.jpg".
        bucket: The setting storage.bucket.
        server: The setting storage.endpoint_url, or the name of the default server.
        key: The object concerned; "" for the bucket as a whole.
    """

    action: str
    bucket: str
    server: str
    key: str = ""


_Rule = Callable[[FailedCall], StorageError]


def _rule(kind: type[StorageError], why: str) -> _Rule:
    """Return what makes an error of a kind; `why` may name {bucket} and {server}."""
    return lambda attempt: kind(
        f"cannot {attempt.action}: {why.format(bucket=repr(attempt.bucket), server=attempt.server)}"
    )


def _no_key(attempt: FailedCall) -> StorageError:
    if not attempt.key:
        return _no_bucket(attempt)
    return ObjectNotFoundError(f"cannot {attempt.action}: it does not exist")


_forbidden = _rule(
    AccessDeniedError,
    "the server refused it; check storage.bucket={bucket} "
    f"and that {_KEYS} are right and may use that bucket",
)
_no_bucket = _rule(
    ObjectNotFoundError,
    "there is no bucket {bucket} on {server}; correct storage.bucket (or storage.endpoint_url), "
    "or create the bucket",
)
_bad_bucket = _rule(
    StorageError,
    "storage.bucket={bucket} is no valid bucket name "
    "(3 to 63 lower-case letters, digits, '.' and '-')",
)
_bad_region = _rule(
    StorageError,
    "the bucket lies in another region; set storage.region to the region of the bucket",
)
_busy = _rule(
    StorageUnavailableError,
    "{server} is overloaded, broken or no S3 server; look at its log and try again, or correct "
    "storage.endpoint_url",
)
_full = _rule(StorageError, "no space left on {server}; free some there")
_WRONG_ID = _rule(
    AccessDeniedError,
    "the server does not know AWS_ACCESS_KEY_ID; set it to a key of this server",
)
_WRONG_SECRET = _rule(
    AccessDeniedError, "AWS_SECRET_ACCESS_KEY does not belong to AWS_ACCESS_KEY_ID; correct it"
)
_EXPIRED = _rule(
    AccessDeniedError, f"the credentials have expired; renew {_KEYS} and AWS_SESSION_TOKEN"
)
_CLOCK = _rule(
    AccessDeniedError,
    "this machine's clock is wrong; set it, for requests are signed with the time",
)

_BY_CODE: dict[str, _Rule] = {
    "InvalidAccessKeyId": _WRONG_ID,
    "SignatureDoesNotMatch": _WRONG_SECRET,
    "ExpiredToken": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestTimeTooSkewed": _CLOCK,
    "NoSuchBucket": _no_bucket,
    "NoSuchKey": _no_key,
    "InvalidBucketName": _bad_bucket,
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


def storage_error(error: Exception, attempt: FailedCall) -> StorageError:
    """Return the error to raise for what botocore, aiohttp or the system raised.

    Its message names the setting at fault and holds no credential.
    """
    if isinstance(error, StorageError):  # says all there is to say
        return error
    if isinstance(error, ExhaustedError):
        found = storage_error(error.cause, attempt)
        return type(found)(f"{found} ({error.tries.summary})")
    return _translated(error, attempt)


def _translated(error: Exception, attempt: FailedCall) -> StorageError:
    from botocore.exceptions import BotoCoreError, ClientError

    if type(error).__name__ == "FlexibleChecksumError":
        return ContentMismatchError(
            f"cannot {attempt.action}: {_scrubbed(error)}; upload the object anew"
        )
    if isinstance(error, ClientError):
        return _from_answer(error.response, attempt)
    if isinstance(error, BotoCoreError):
        return _from_client(error, attempt)
    if isinstance(error, TimeoutError | OSError) or _is_aiohttp(error):
        return _unreachable(error, attempt)
    return StorageError(f"cannot {attempt.action}: {_scrubbed(error)}")


def _from_answer(response: Mapping[str, Any], attempt: FailedCall) -> StorageError:
    """Judge an answer by its code first (precise), then by its HTTP status."""
    said = response.get("Error", {})
    code = str(said.get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    rule = _BY_CODE.get(code) or _BY_STATUS.get(status)
    if rule is None and status >= 500:  # noqa: PLR2004 - HTTP's server errors
        rule = _busy
    if rule is not None:
        return rule(attempt)
    message = _scrubbed(said.get("Message", ""))
    return StorageError(f"cannot {attempt.action}: the server answered {code}: {message}")


def _from_client(error: Exception, attempt: FailedCall) -> StorageError:
    from botocore import exceptions as boto

    absent = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)
    if isinstance(error, absent):
        return AccessDeniedError(
            f"cannot {attempt.action}: no credentials found; set {_KEYS} in the environment "
            "(or AWS_PROFILE to a profile that has them)"
        )
    if isinstance(error, boto.ProfileNotFound):
        return AccessDeniedError(
            f"cannot {attempt.action}: AWS_PROFILE names no profile in the AWS configuration; "
            f"correct it, or unset it and set {_KEYS}"
        )
    if isinstance(error, boto.ParamValidationError):
        return _bad_bucket(attempt)
    if type(error).__name__ == "ResponseParserError":
        return not_s3(attempt)
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError | boto.ConnectionClosedError):
        return _unreachable(error, attempt)
    return StorageError(f"cannot {attempt.action}: {_scrubbed(error)}")


def not_s3(attempt: FailedCall) -> StorageError:
    """Return the error for an answer that no S3 server would give."""
    return StorageError(
        f"cannot {attempt.action}: {attempt.server} does not speak S3; "
        "correct storage.endpoint_url (some servers have another port for S3 than for their page)"
    )


def _unreachable(error: Exception, attempt: FailedCall) -> StorageError:
    slow = isinstance(error, TimeoutError) or "timeout" in type(error).__name__.lower()
    why = "did not answer in time" if slow else "cannot be reached or broke the connection"
    return StorageUnavailableError(
        f"cannot {attempt.action}: {attempt.server} {why}; "
        "check storage.endpoint_url, and that the server runs"
    )


def _is_aiohttp(error: Exception) -> bool:
    import aiohttp

    return isinstance(error, aiohttp.ClientError)


def _scrubbed(said: object) -> str:
    text = str(said)
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
     "BandwidthLimitExceeded", "ServiceUnavailable")
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
    from botocore import exceptions as boto

    if isinstance(error, ContentMismatchError | boto.FlexibleChecksumError):
        return Fault("the bytes do not match their checksum", damaged=True)
    if isinstance(error, boto.ClientError):
        return _of_answer(error.response)
    slow = isinstance(error, TimeoutError | boto.ConnectTimeoutError | boto.ReadTimeoutError)
    if slow or "Timeout" in type(error).__name__:
        return Fault("no answer in time (storage.timeout_s)", timeout=True)
    if isinstance(error, boto.IncompleteReadError):
        return Fault("the body ended early")
    broken = (boto.HTTPClientError, boto.ConnectionError, boto.ConnectionClosedError, OSError)
    if isinstance(error, broken) or _is_aiohttp(error):
        return Fault(f"the connection broke ({_kind(error)})")
    return None


def _of_answer(response: "dict[str, dict[str, object]]") -> Fault | None:
    said = response.get("ResponseMetadata", {})
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(str(said.get("HTTPStatusCode", 0)))
    throttled = code in _THROTTLING or status in _THROTTLING_STATUS
    if code in _FULL or status in _LASTING_STATUS:
        return None
    if not (throttled or code in _PASSING or status == 408 or status >= 500):  # noqa: PLR2004 - HTTP's request timeout and server errors
        return None
    headers = said.get("HTTPHeaders")
    asked = retry_after(headers) if isinstance(headers, dict) else None
    name = f" {code}" if code and code != str(status) else ""
    return Fault(f"the server said {status}{name}", throttled=throttled, retry_after_s=asked)


def _kind(error: Exception) -> str:
    """Name what lies below: botocore wraps what aiohttp says."""
    inner = getattr(error, "kwargs", {}).get("error")
    return type(inner if isinstance(inner, Exception) else error).__name__
