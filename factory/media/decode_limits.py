"""Limits on what decoding one picture may take: memory, scans and time."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from factory.errors import MediaError
from factory.limits import Above, AtLeast
from factory.media.formats.header_bytes import Header

# Peak bytes per pixel of decoding a picture whole, its RGB included: measured as resident memory
# for the deepest pixels of each format (transparent ones where there are such).
_PER_PIXEL = {
    "JPEG": 3, "PNG": 8, "GIF": 8, "BMP": 8, "TIFF": 12, "WEBP": 18, "AVIF": 14, "HEIC": 12,
    "JXL": 32,
}  # fmt: skip
# Coefficients of a JPEG in several scans: 16 bits each for up to four colours.
_COEFFICIENTS = 8
# Pixels that need no second look, whatever their format: 4 MP take 128 MiB at the most.
_FEW = 4 * 10**6
_MIB = 2**20

# Reasons of samples that another limit would admit.
BEYOND_LIMITS = ("too large", "too many scans", "too slow")


@dataclass(frozen=True)
class DecodeLimits:
    """What one picture may ask for; what asks for more is dropped with its reason.

    Attributes:
        memory_mb: Memory to decode in, MiB: file, pixels and decoder of a picture; shared by all
            threads of a process.
        jpeg_scans: Passes that a JPEG may be stored in.
        seconds: Time to decode one picture in, where its decoder can be stopped.
    """

    # A PNG of 256 MP, which is what metadata.max_megapixels lets in, takes 2 GiB as RGB with its
    # decoder's copy; a photograph of 100 MP in any format takes less.
    memory_mb: Annotated[float, Above(0)] = 2048.0
    # Encoders write some ten, and each of a large picture takes as long as decoding it does.
    jpeg_scans: Annotated[int, AtLeast(1)] = 100
    # The largest pictures there are take some seconds.
    seconds: Annotated[float, Above(0)] = 60.0

    def admit_freely(self, pixels: int, size: int | None) -> bool:
        """Return whether a picture is so small that nothing has to be computed."""
        return pixels <= _FEW and (size or 0) <= self.memory_mb * _MIB / 4

    def least(self, header: Header, size: int | None) -> int:
        """Return the least bytes that decoding takes, in any mode; negative sizes are unknown."""
        pixels = header.width * header.height
        if header.format == "JPEG":  # at a reduced scale pixels take next to nothing
            needed = _COEFFICIENTS * pixels if header.whole else 0
        else:
            needed = _PER_PIXEL[header.format] * pixels
        return needed + max(size or 0, 0)

    def needed(self, header: Header, size: int, reduced: float = 1.0) -> int:
        """Return the bytes that decoding takes.

        Args:
            header: What the picture is.
            size: Bytes of its file.
            reduced: Scale that a JPEG is decoded at, up to 1.
        """
        least = self.least(header, size)
        if header.format != "JPEG":
            return least
        return least + int(_PER_PIXEL["JPEG"] * header.width * header.height * reduced**2)

    def check(self, needed: int, header: Header) -> None:
        """Refuse a picture that takes more memory than there may be.

        Raises:
            MediaError: With reason "too large".
        """
        self._check(needed, f"{header.format} of {header.width} x {header.height} px")

    def check_file(self, size: int) -> None:
        """Refuse a file that is too large to be read; negative sizes are unknown.

        Raises:
            MediaError: With reason "too large".
        """
        self._check(size, f"file of {size / _MIB:.0f} MiB")

    def _check(self, needed: int, what: str) -> None:
        if needed > self.memory_mb * _MIB:
            least = math.ceil(needed / _MIB)
            raise MediaError(
                "too large",
                f"{what}, which takes {least} MiB to decode, above the limit of "
                f"{self.memory_mb:g} MiB; raise the limit, data.limits.memory_mb={least}, if it is "
                "meant to be so large",
            )

    def check_scans(self, scans: int) -> None:
        """Refuse a JPEG in more passes than encoders write, each of which takes time.

        Raises:
            MediaError: With reason "too many scans".
        """
        if scans > self.jpeg_scans:
            raise MediaError(
                "too many scans",
                f"JPEG in more than {self.jpeg_scans} scans; save it again, or raise "
                "data.limits.jpeg_scans",
            )

    @contextmanager
    def room(self, needed: int) -> Iterator[None]:
        """Wait until there is as much memory as a decoder needs, and hold it meanwhile."""
        if needed < self.memory_mb * _MIB / 64:  # sixty-four of them at once would still fit
            yield
            return
        _IN_USE.take(needed, int(self.memory_mb * _MIB))
        try:
            yield
        finally:
            _IN_USE.give(needed)


class _InUse:
    """Bytes that decoders of this process hold."""

    def __init__(self) -> None:
        self._held = 0
        self._changed = threading.Condition()

    def take(self, needed: int, most: int) -> None:
        """Wait until there is room below a limit; one picture alone always has it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + needed <= most)
            self._held += needed

    def give(self, needed: int) -> None:
        """Give back what was taken."""
        with self._changed:
            self._held -= needed
            self._changed.notify_all()


_IN_USE = _InUse()
