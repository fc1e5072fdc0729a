"""Video containers: their first bytes, whether the end is missing, and the table of frames."""

import os
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from typing import Any, BinaryIO, NamedTuple

# The longest signature (RIFF....AVI ) ends here.
SIGNATURE = 12
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
# Length and type of an MP4 box; a longer length follows them.
_BOX, _LONG_BOX = 8, 16
# Boxes looked at: a file has a handful, and fragments come in pairs. Damage must not take hours.
_MOST_BOXES = 100_000


def announces_video(head: bytes) -> bool:
    """Whether the first bytes are those of a container."""
    return _is_mp4(head) or _is_avi(head) or head.startswith((_EBML, b"GIF8"))


def breaks_off(file: BinaryIO) -> bool:
    """Whether a container says that it is longer than the file; leaves its position alone."""
    position = file.tell()
    try:
        size = file.seek(0, os.SEEK_END)
        return _claimed(file, size) > size
    finally:
        file.seek(position)


def _claimed(file: BinaryIO, size: int) -> int:
    """Return the length a container claims, bytes; 0 where it makes no claim."""
    head = _read(file, 0, 64)
    if _is_mp4(head):
        return _boxes_end(file, size)
    if _is_avi(head):
        return 8 + int.from_bytes(head[4:8], "little")
    if head.startswith(_EBML):
        length, start = _ebml_length(head, len(_EBML))
        start += length or 0
        head = _read(file, start, 16)
        if head.startswith(_SEGMENT):
            length, used = _ebml_length(head, len(_SEGMENT))
            return 0 if length is None else start + used + length
    return 0


def _is_mp4(head: bytes) -> bool:
    return head[4:8] in _MP4_BOXES


def _is_avi(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"AVI "


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Return where the last of the boxes of an MP4 ends."""
    position = 0
    for _ in range(_MOST_BOXES):
        header = _read(file, position, _LONG_BOX)
        if position + _BOX > size or len(header) < _BOX:
            break
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[_BOX:_LONG_BOX], "big")
        if length < _BOX:  # 0 goes up to the end of the file
            break
        position += length
    return position


def _ebml_length(data: bytes, place: int) -> tuple[int | None, int]:
    """Return a length of EBML, None where it is left open, and the place behind it."""
    first = data[place] if place < len(data) else 0
    width = 9 - first.bit_length()
    value = int.from_bytes(data[place : place + width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), place + width


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    """Return the bytes at a place, all of them unless the file ends."""
    file.seek(start)
    found = b""
    while len(found) < length and (more := file.read(length - len(found))):
        found += more
    return found


# Demuxers that go to a time; others are read from the start.
_SEEKABLE = ("mov", "matroska", "avi", "mpegts", "mpeg")
# Key frames tried: frames that are shown before the first one but follow it in the file need
# the key frame before it.
_TRIES = 3


class Packet(NamedTuple):
    """One packet of a video, in the order of the file.

    Attributes:
        mark: What tells it from the others: its decoding time where an index lists it, else
            its place in the file.
        time: Where to seek to for it, in the stream's unit; None where that is not known.
        key: Whether decoding can begin with it.
        shown: Whether it gives a frame: one that an edit list leaves out does not.
    """

    mark: int | None
    time: int | None
    key: bool
    shown: bool


@dataclass(frozen=True)
class FrameTable:
    """The packets of a video.

    Attributes:
        packets: All of them, in the order of the file.
        indexed: Whether they come from the container's index, so that nothing was read yet.
        claimed: Number of frames the container claims where its end was cut off, and some of
            them with it; 0 where it makes no such claim.
    """

    packets: Sequence[Packet]
    indexed: bool
    claimed: int = 0

    @cached_property
    def count(self) -> int:
        """Number of frames."""
        return self.claimed or sum(packet.shown for packet in self.packets)

    @cached_property
    def _before(self) -> list[int]:
        """Frames whose packets come before each packet."""
        return [0, *accumulate(packet.shown for packet in self.packets)]

    @cached_property
    def _places(self) -> dict[int | None, int]:
        return {packet.mark: place for place, packet in enumerate(self.packets)}

    def key_times(self, first: int) -> list[int]:
        """Return times of the key frames to try for a frame, the nearest first; may be none."""
        if len(self._places) < len(self.packets) or None in self._places:
            return []
        times = []
        for place in range(len(self.packets) - 1, 0, -1):
            packet = self.packets[place]
            if packet.key and packet.time is not None and self._before[place] <= first:
                times.append(packet.time)
                if len(times) == _TRIES:
                    break
        return times

    def seek(self, container: Any, stream: Any, first: int) -> "Iterator[tuple[int, Any]] | None":
        """Return frames with their numbers from a key frame at or before the first one wanted.

        Numbers may be missing where the decoder needs more than the key frame, and the frames
        end early where times are missing: such a video has to be decoded from its start.

        Returns:
            None where no key frame can be gone to, or only the first one.
        """
        if container.format.name.split(",")[0] not in _SEEKABLE:
            return None
        for time in self.key_times(first):
            container.seek(time, stream=stream)
            packets = container.demux(stream)
            key = self._landed(packets)
            if key is None:
                return None
            head, leading = [key], 0
            for packet in packets:
                head.append(packet)
                if packet.pts is None or packet.pts >= key.pts:
                    break
                leading += _gives_frame(packet, stream)
            number = self._before[self._place(key)] + leading
            if number <= first:
                return _numbered(chain(head, packets), stream, number, key.pts)
        return None

    def _place(self, packet: Any) -> int:
        return self._places.get(packet.dts if self.indexed else packet.pos, -1)

    def _landed(self, packets: Iterator[Any]) -> Any:
        """Return the first key frame among packets, if the table knows it."""
        for packet in packets:
            if packet.size and packet.is_keyframe:
                known = self._place(packet) >= 0 and packet.pts is not None
                return packet if known else None
        return None


def read_index(container: Any, stream: Any) -> FrameTable | None:
    """Return the frames a container's index lists; None where it does not list all."""
    kind, listed = container.format.name.split(",")[0], len(stream.index_entries)
    # The index of a fragmented MP4 holds what was read so far, and its header counts no frame.
    # An edit list may leave out entries or repeat them.
    if not listed or not stream.frames or kind not in ("mov", "avi"):
        return None
    if kind == "avi" and listed != stream.frames:
        return None
    return FrameTable(
        [
            Packet(entry.timestamp, entry.timestamp, entry.is_keyframe, _listed(entry))
            for entry in stream.index_entries
        ],
        indexed=True,
    )


def read_packets(container: Any, stream: Any) -> FrameTable:
    """Return the frames of the packets of a whole file."""
    return FrameTable(
        [
            Packet(
                packet.pos,
                packet.pts if packet.pts is not None else packet.dts,
                packet.is_keyframe,
                _gives_frame(packet, stream),
            )
            for packet in container.demux(stream)
            if packet.size
        ],
        indexed=False,
    )


def _listed(entry: Any) -> bool:
    return bool(entry.size) and not entry.is_discard


def _gives_frame(packet: Any, stream: Any) -> bool:
    """Whether a packet is shown: VP8 has packets that others only refer to."""
    if not packet.size or packet.is_discard:
        return False
    # show_frame is the fifth bit of a VP8 frame's tag.
    return stream.codec_context.codec.name != "vp8" or bool(bytes(packet)[0] >> 4 & 1)


def _numbered(
    packets: Iterator[Any], stream: Any, number: int, start: int
) -> Iterator[tuple[int, Any]]:
    """Decode packets; number the frames from `start` on by their times, beginning at `number`."""
    times: list[int] = []
    for packet in packets:
        if packet.size:
            if packet.pts is None:
                return
            if packet.pts >= start and _gives_frame(packet, stream):
                insort(times, packet.pts)
        for frame in packet.decode():
            if frame.pts is None:
                return
            if frame.pts >= start:
                yield number + bisect_left(times, frame.pts), frame
