"""Which failures of an S3 request may pass, so that it is sent again?"""

from factory.errors import ContentMismatchError
from factory.storage.retry import Fault, retry_after

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


def _is_aiohttp(error: Exception) -> bool:
    import aiohttp

    return isinstance(error, aiohttp.ClientError)


def _kind(error: Exception) -> str:
    """Name what lies below: botocore wraps what aiohttp says."""
    inner = getattr(error, "kwargs", {}).get("error")
    return type(inner if isinstance(inner, Exception) else error).__name__
