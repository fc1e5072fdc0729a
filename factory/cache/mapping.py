"""How is a file of this machine read as memory?"""

from pathlib import Path

import numpy as np
import torch

from factory.cache.container import Bytes
from factory.errors import ObjectNotFoundError, StorageError


def mapped_file(path: Path, *, shared: bool = False) -> Bytes:
    """Return a file's bytes, uint8 [bytes], read as they are touched; not to be written to.

    Unlike numpy's, torch's map holds no file descriptor, so that there is no limit to them.

    Args:
        path: The file.
        shared: Whether it may be written to after all, and all processes see what is written.

    Raises:
        ObjectNotFoundError: There is no such file.
        StorageError: It cannot be mapped.
    """
    try:
        size = path.stat().st_size
        if size == 0:
            return np.empty(0, np.uint8)
        tensor = torch.from_file(str(path), shared=shared, size=size, dtype=torch.uint8)
    except FileNotFoundError as error:
        raise ObjectNotFoundError(f"{path} does not exist") from error
    except (OSError, RuntimeError) as error:
        raise StorageError(f"cannot map {path}: {error}") from error
    data: Bytes = tensor.numpy()
    if not shared:
        data.flags.writeable = False
    return data
