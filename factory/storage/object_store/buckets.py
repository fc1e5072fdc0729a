"""Kinds of object stores: S3 and what speaks its protocol, Google Cloud Storage, Azure."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from factory.errors import StorageError
from factory.storage.keys import is_listed, is_normal
from factory.storage.object_store.aws import environment_endpoint, find_access, region_of
from factory.storage.object_store.errors import FailedCall, StoreTerms, no_credentials
from factory.storage.object_store.object_storage import ObjectStorage

if TYPE_CHECKING:
    import pyarrow as pa

# Buckets of one zone, whose ETags are no hashes.
_ONE_ZONE = "--x-s3"


@dataclass(frozen=True)
class S3Storage(ObjectStorage):
    """Objects below a prefix of a bucket of S3, or of a server that speaks its protocol.

    Credentials come from the environment or the SDK's own chain, and are no setting. With
    an endpoint of your own, the EC2 metadata service is not asked for them (it would only
    cost time) unless AWS_EC2_METADATA_DISABLED is set to "false".

    Attributes:
        endpoint_url: Server's URL (S3_ENDPOINT_URL); None for AWS itself.
        region: Region; None follows AWS_DEFAULT_REGION.
        profile: Profile of the AWS configuration; None follows AWS_PROFILE.
        requester_pays: Pay for requests to buckets whose owner does not.
        virtual_host: Send requests to BUCKET.HOST instead of HOST/BUCKET.
    """

    terms: ClassVar[StoreTerms] = StoreTerms(
        "S3", "bucket", "AWS_ACCESS_KEY_ID / AWS_SECRET_ACCESS_KEY",
        "or AWS_PROFILE to a profile that has them",
    )  # fmt: skip

    region: str | None = None
    profile: str | None = None
    requester_pays: bool = False
    virtual_host: bool = False

    @property
    def _uri(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def _default_server(self) -> str:
        # What stands before "@" in the environment's address may be a password.
        return environment_endpoint().rpartition("@")[2] or "AWS"

    def _connection(self, call: FailedCall) -> tuple[str, dict[str, Any]]:
        try:
            found = find_access(self.endpoint_url, self.region, self.profile, self.anonymous)
        except LookupError as error:
            raise no_credentials(call) from error
        region = found.region
        config: dict[str, Any] = {
            # One object at a time: not all servers know how to delete several.
            "disable_bulk_delete": True,
            "skip_signature": self.anonymous,
            "virtual_hosted_style_request": self.virtual_host,
        }
        if self.requester_pays:
            config["request_payer"] = True
        if found.endpoint_url:
            url = _bucket_host(found.endpoint_url, self.bucket if self.virtual_host else "")
            # By both names: the environment's second one would win over the first.
            config |= {"endpoint": url, "aws_endpoint_url_s3": url}
        else:
            if self.region is None and "AWS_DEFAULT_REGION" not in os.environ:
                region = region_of(self.bucket) or region
            url = f"https://s3.{region}.amazonaws.com"
        own_key = "AWS_SSE_CUSTOMER_KEY_BASE64" in os.environ
        return url, {
            "kind": "S3Store",
            "config": {**config, "region": region},
            "credentials": found.credentials,
            "hashed": not (own_key or self.bucket.endswith(_ONE_ZONE)),
        }

    def _odd_pages(
        self, start: str, after: str | None, failed: FailedCall
    ) -> "Iterator[pa.RecordBatch]":
        """List by the SDK, which is slower and takes keys of every spelling."""
        from factory.storage.listing import Listing

        odd: list[str] = []
        for page in self._sdk_pages(start, after, failed):
            rows = []
            for entry in page.get("Contents", ()):
                key = entry["Key"][len(self._root) :]
                if not is_normal(key) and not key.endswith("/"):
                    odd.append(key)
                elif is_listed(key) and key:
                    rows.append((key, int(entry["Size"]), entry["ETag"].strip('"')))
            yield from Listing().extend(rows).table().to_batches()
        self._warn_of_odd(odd)

    def _sdk_pages(
        self, start: str, after: str | None, failed: FailedCall
    ) -> "Iterator[dict[str, Any]]":
        """Yield answers of the SDK's own listing."""
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.session import Session

        found = find_access(self.endpoint_url, self.region, self.profile, self.anonymous)
        keys = found.credentials() if found.credentials else {}
        config = Config(
            connect_timeout=self.timeout_s, read_timeout=self.timeout_s,
            retries={"total_max_attempts": self.max_attempts, "mode": "standard"},
            s3={"addressing_style": "virtual" if self.virtual_host else "path"},
            signature_version=None if keys else UNSIGNED,
        )  # fmt: skip
        client = Session(profile=self.profile).create_client(
            "s3", region_name=found.region, endpoint_url=found.endpoint_url, config=config,
            aws_access_key_id=keys.get("access_key_id"), aws_session_token=keys.get("token"),
            aws_secret_access_key=keys.get("secret_access_key"),
            verify=self.ca_certificate or self.verify_tls,
        )  # fmt: skip
        request = {"Bucket": self.bucket, "Prefix": start}
        request |= {"StartAfter": after} if after else {}
        request |= {"RequestPayer": "requester"} if self.requester_pays else {}
        try:
            yield from client.get_paginator("list_objects_v2").paginate(**request)
        except (BotoCoreError, ClientError) as error:
            raise StorageError(f"cannot {failed.action}: {type(error).__name__}") from error
        finally:
            client.close()


@dataclass(frozen=True)
class GcsStorage(ObjectStorage):
    """Objects below a prefix of a bucket of Google Cloud Storage.

    Credentials come from GOOGLE_APPLICATION_CREDENTIALS, from what `gcloud auth
    application-default login` left, or from the machine's own account; they are no setting.

    Attributes:
        user_project: Project that pays for requests to buckets whose owner does not.
    """

    terms: ClassVar[StoreTerms] = StoreTerms(
        "GCS", "bucket", "GOOGLE_APPLICATION_CREDENTIALS",
        "the path of a service account's JSON file), or run gcloud auth application-default login "
        "(or set storage.anonymous=true for a public bucket",
    )  # fmt: skip

    user_project: str | None = None

    @property
    def _uri(self) -> str:
        return f"gs://{self.bucket}"

    @property
    def _default_server(self) -> str:
        return "Google Cloud Storage"

    def _connection(self, call: FailedCall) -> tuple[str, dict[str, Any]]:
        del call
        config: dict[str, Any] = {"skip_signature": self.anonymous}
        if self.endpoint_url:
            config["base_url"] = self.endpoint_url
        headers = {"x-goog-user-project": self.user_project} if self.user_project else {}
        url = self.endpoint_url or "https://storage.googleapis.com"
        return url, {"kind": "GCSStore", "config": config, "headers": headers}


@dataclass(frozen=True)
class AzureStorage(ObjectStorage):
    """Blobs below a prefix of a container of Azure Blob Storage.

    Credentials come from the environment (AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_KEY, a
    service principal's, a workload's) or the machine's own identity; they are no setting.

    Attributes:
        bucket: Name of the container.
        account: Storage account; None follows AZURE_STORAGE_ACCOUNT_NAME.
    """

    terms: ClassVar[StoreTerms] = StoreTerms(
        "Azure's protocol", "container", "AZURE_STORAGE_ACCOUNT_KEY",
        "or AZURE_STORAGE_SAS_KEY, or a service principal's AZURE_STORAGE_CLIENT_ID, _SECRET and "
        "_TENANT_ID",
    )  # fmt: skip

    account: str | None = None

    @property
    def _account(self) -> str:
        return self.account or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")

    @property
    def _uri(self) -> str:
        return f"az://{self._account}/{self.bucket}"

    @property
    def _default_server(self) -> str:
        return f"https://{self._account}.blob.core.windows.net"

    def _connection(self, call: FailedCall) -> tuple[str, dict[str, Any]]:
        if not self._account:
            raise StorageError(
                f"cannot {call.action}: storage.account is not set; set it, or "
                "AZURE_STORAGE_ACCOUNT_NAME, to the name of a storage account"
            )
        config: dict[str, Any] = {
            "account_name": self._account, "skip_signature": self.anonymous,
        }  # fmt: skip
        if self.endpoint_url:
            config["endpoint"] = self.endpoint_url
        # ETags here are no hashes.
        given = {"kind": "AzureStore", "config": config, "hashed": False}
        return self._server, given


def _bucket_host(url: str, bucket: str) -> str:
    """Return a server's address without a password, and with the bucket before its host."""
    scheme, _, rest = url.rstrip("/").partition("://")
    host = rest.rpartition("@")[2]
    return f"{scheme}://{bucket}.{host}" if bucket else f"{scheme}://{host}"
