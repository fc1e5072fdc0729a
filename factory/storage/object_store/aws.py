"""Credentials, region and server of AWS, as the SDK's own chain finds them."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from factory.errors import AccessDeniedError

if TYPE_CHECKING:
    from botocore.credentials import Credentials

# Where nothing says another region: what SDKs sign with.
_REGION = "us-east-1"
# Seconds that a service for credentials may take to connect, and to answer.
_SERVICE_S = 4
# How long what it gave is used before botocore is asked again, which renews it in time.
_KEPT = timedelta(minutes=1)


class AwsAccess(NamedTuple):
    """What requests to S3 are sent to and signed with.

    Attributes:
        endpoint_url: Server; None for AWS itself.
        region: Region.
        credentials: Returns the keys, as obstore asks for them; None signs nothing.
    """

    endpoint_url: str | None
    region: str
    credentials: Callable[[], dict[str, Any]] | None


def environment_endpoint() -> str:
    """Return the server that the SDK takes from the environment; "" for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def find_access(
    endpoint_url: str | None, region: str | None, profile: str | None, anonymous: bool
) -> AwsAccess:
    """Find what a storage's settings leave open.

    With an endpoint of one's own, the EC2 metadata service is not asked for credentials (it would
    only cost time) unless AWS_EC2_METADATA_DISABLED is set to "false".

    Raises:
        LookupError: There are no credentials.
        AccessDeniedError: There is no such profile.
    """
    region = region or os.environ.get("AWS_DEFAULT_REGION")
    endpoint_url = endpoint_url or environment_endpoint() or None
    keys = [os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    config = Path(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser()
    # Where nothing else is set up these are what the SDK finds; loading it takes a second.
    plain = (anonymous or all(keys)) and not (
        profile or os.environ.get("AWS_PROFILE") or config.exists()
    )
    if plain:
        given = {
            "access_key_id": keys[0],
            "secret_access_key": keys[1],
            "token": os.environ.get("AWS_SESSION_TOKEN"),
            "expires_at": None,
        }
        return AwsAccess(endpoint_url, region or _REGION, None if anonymous else lambda: given)
    return _from_sdk(endpoint_url, region, profile, anonymous)


def _from_sdk(
    endpoint_url: str | None, region: str | None, profile: str | None, anonymous: bool
) -> AwsAccess:
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ProfileNotFound
    from botocore.session import Session

    session: Session = Session(profile=profile)
    quick = Config(
        connect_timeout=_SERVICE_S, read_timeout=_SERVICE_S, retries={"total_max_attempts": 1}
    )
    session.set_default_client_config(quick)
    try:
        endpoint_url = endpoint_url or session.get_scoped_config().get("endpoint_url")
        if endpoint_url and "AWS_EC2_METADATA_DISABLED" not in os.environ:
            session.get_component("credential_provider").remove("iam-role")
        region = region or session.get_config_variable("region") or _REGION
        found = None if anonymous else session.get_credentials()
    except ProfileNotFound as error:
        setting = "storage.profile" if profile else "AWS_PROFILE"
        raise AccessDeniedError(
            f"{setting} names no profile in the AWS configuration; correct it, or unset it and set "
            "AWS_ACCESS_KEY_ID / AWS_SECRET_ACCESS_KEY"
        ) from error
    except BotoCoreError as error:
        raise LookupError(str(error)) from error
    if found is None and not anonymous:
        raise LookupError("no credentials")
    return AwsAccess(endpoint_url, region, None if found is None else _Renewed(found))


class _Renewed:
    """Credentials that botocore renews; called by obstore, in threads of its own."""

    # As long before they expire obstore asks again: never, since botocore renews them earlier.
    refresh_threshold = timedelta(0)

    def __init__(self, found: "Credentials") -> None:
        self._found = found

    def __call__(self) -> dict[str, Any]:
        frozen = self._found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _KEPT,
        }


def region_of(bucket: str) -> str | None:
    """Ask AWS in which region a bucket lies; None where it does not say.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadBucket.html: also those who may not
    read it are told.
    """
    import urllib3

    try:
        url = f"https://s3.{_REGION}.amazonaws.com/{bucket}"
        answer = urllib3.request("HEAD", url, timeout=_SERVICE_S, retries=False, redirect=False)
    except urllib3.exceptions.HTTPError:
        return None
    return answer.headers.get("x-amz-bucket-region")
