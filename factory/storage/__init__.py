"""Bytes and where they live; nothing here knows what they mean."""

import importlib
from typing import TYPE_CHECKING

from factory.storage.base import Storage, TabularStorage, safe_key

if TYPE_CHECKING:
    from factory.storage.fsspec_storage import FsspecStorage
    from factory.storage.http_storage import HttpStorage
    from factory.storage.huggingface import HuggingFaceStorage
    from factory.storage.local import LocalStorage
    from factory.storage.memory import MemoryStorage
    from factory.storage.object_store.buckets import AzureStorage, GcsStorage, S3Storage
    from factory.storage.tar.tar_storage import TarStorage
    from factory.storage.url_list.url_list_storage import UrlListStorage

__all__ = [
    "AzureStorage",
    "FsspecStorage",
    "GcsStorage",
    "HttpStorage",
    "HuggingFaceStorage",
    "LocalStorage",
    "MemoryStorage",
    "S3Storage",
    "Storage",
    "TabularStorage",
    "TarStorage",
    "UrlListStorage",
    "safe_key",
]

_HOMES = {
    "AzureStorage": "factory.storage.object_store.buckets",
    "GcsStorage": "factory.storage.object_store.buckets",
    "FsspecStorage": "factory.storage.fsspec_storage",
    "HttpStorage": "factory.storage.http_storage",
    "HuggingFaceStorage": "factory.storage.huggingface",
    "LocalStorage": "factory.storage.local",
    "MemoryStorage": "factory.storage.memory",
    "S3Storage": "factory.storage.object_store.buckets",
    "TarStorage": "factory.storage.tar.tar_storage",
    "UrlListStorage": "factory.storage.url_list.url_list_storage",
}


def __getattr__(name: str) -> type[Storage]:
    """Import a storage when it is first named, so that importing this package stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    storage: type[Storage] = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = storage
    return storage
