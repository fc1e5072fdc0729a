"""Archives of every dialect are read as `tarfile` reads them; damage costs what it hit."""

import gzip
import io
import tarfile
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.storage.tar.tar_headers import BLOCK, Members, parse_header, read_members
from tests.storage.tar.tars import archive, as_tarfile_reads, mended
from tests.support.examples import examples

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
LONG = "folder-of-a-long-name/" * 6 + "ü" * 70 + ".jpg"


def walked(data: bytes) -> Members:
    def read(start: int, length: int) -> bytes:
        assert start >= 0
        assert length > 0
        return data[start : start + length]

    members = read_members(read, len(data))
    for start, size in members.places.values():
        assert 0 <= start <= start + size <= len(data)
    return members


def contents(data: bytes) -> dict[str, bytes]:
    return {k: data[start : start + n] for k, (start, n) in walked(data).places.items()}


def reasons(members: Members) -> list[str]:
    return list(members.problems)


def entry(kind: bytes, name: str = "odd", size: int = 0, **more: object) -> bytes:
    """Return an archive of an entry of some kind and a file behind it."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, str(more.get("to", ""))
        info.size = size
        tar.addfile(info, io.BytesIO(b"\7" * size) if size else None)
        behind = tarfile.TarInfo("behind.jpg")
        behind.size = 3
        tar.addfile(behind, io.BytesIO(b"abc"))
    return target.getvalue()


SMALL = st.binary(max_size=3000)
PARTS = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60)
NAMES = st.lists(PARTS, min_size=1, max_size=6).map("/".join)


def is_plain(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return str(PurePosixPath(name)) == name and ".." not in parts


@settings(max_examples=examples(150), deadline=None)
@given(
    st.lists(st.tuples(NAMES.filter(is_plain), SMALL), max_size=8),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_any_archive_reads_as_tarfile_reads_it(
    members: list[tuple[str, bytes]], dialect: int
) -> None:
    data = archive(members, dialect)
    assert contents(data) == as_tarfile_reads(data) == dict(members)


@pytest.mark.parametrize("dialect", FORMATS)
def test_every_dialect(dialect: int) -> None:
    names = ["a.jpg", "b/c.txt", "empty", "d/" * 40 + "deep.png", "x" * 99, "日本/🦊\n.jpg"]
    if dialect != tarfile.USTAR_FORMAT:
        names += [LONG, "y" * 100, "z" * 300]
    members = {name: name.encode() * 50 for name in names} | {"empty": b""}
    data = archive(members, dialect)
    assert contents(data) == as_tarfile_reads(data) == members
    assert walked(data).problems == {}


def test_a_size_in_an_extended_header_counts() -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("big.bin")
        info.size, info.pax_headers = 1000, {"size": "1000", "comment": "ü"}
        tar.addfile(info, io.BytesIO(b"1" * 1000))
        tar.addfile(tarfile.TarInfo("last"))
    data = bytearray(target.getvalue())
    at = data.index(b"big.bin")
    while (
        b"ustar" not in data[at : at + BLOCK] or parse_header(bytes(data[at : at + BLOCK])) is None
    ):
        at = data.index(b"big.bin", at + 1)
    block = bytes(data[at : at + BLOCK])
    data[at : at + BLOCK] = mended(block[:124] + b"00000000000\0" + block[136:])
    assert contents(bytes(data)) == {"big.bin": b"1" * 1000, "last": b""}


def test_binary_sizes() -> None:
    data = bytearray(archive({"a": b"x" * 700, "b": b"y"}))
    block = bytes(data[:BLOCK])
    data[:BLOCK] = mended(block[:124] + b"\x80" + (700).to_bytes(11, "big") + block[136:])
    assert contents(bytes(data)) == {"a": b"x" * 700, "b": b"y"}


def test_dot_slash_folders_and_old_style_folders() -> None:
    old = bytearray(archive({"old/": b"", "./old//a.jpg": b"1", "old/._a.jpg": b"2"}))
    old[:BLOCK] = mended(bytes(old[:156]) + b"\0" + bytes(old[157:BLOCK]))
    assert contents(bytes(old)) == {"old/a.jpg": b"1", "old/._a.jpg": b"2"}
    assert contents(entry(tarfile.DIRTYPE, "sub")) == {"behind.jpg": b"abc"}
    assert walked(entry(tarfile.DIRTYPE, "sub")).problems == {}


@pytest.mark.parametrize(
    ("kind", "size", "reason"),
    [
        (tarfile.LNKTYPE, 0, "hard link"), (tarfile.SYMTYPE, 0, "symbolic link"),
        (tarfile.CHRTYPE, 0, "device"), (tarfile.BLKTYPE, 0, "device"),
        (tarfile.FIFOTYPE, 0, "pipe"), (b"V", 0, "entry of an unknown type"),
        (b"M", 700, "entry of an unknown type"), (tarfile.GNUTYPE_SPARSE, 700, "sparse file"),
    ],
)  # fmt: skip
def test_what_is_no_file_is_left_out_and_counted(kind: bytes, size: int, reason: str) -> None:
    members = walked(entry(kind, size=size, to="../../etc/passwd"))
    assert list(members.places) == ["behind.jpg"]
    assert members.problems == {reason: (1, "odd")}


def test_headers_for_all_members_and_long_targets_of_links_are_passed_over() -> None:
    for dialect in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        target = io.BytesIO()
        said = {"comment": "for all", "path": "not a name for all"}
        with tarfile.open(fileobj=target, mode="w", format=dialect, pax_headers=said) as tar:
            link = tarfile.TarInfo("odd")
            link.type, link.linkname = tarfile.LNKTYPE, LONG
            tar.addfile(link)
            tar.addfile(tarfile.TarInfo("behind.jpg"))
        members = walked(target.getvalue())
        assert list(members.places) == ["behind.jpg"]
        assert members.problems == {"hard link": (1, "odd")}


def test_sparse_files_with_more_blocks_of_their_map() -> None:
    data = bytearray(entry(tarfile.GNUTYPE_SPARSE, size=512))
    block = bytes(data[:482]) + b"\1" + bytes(data[483:BLOCK])
    more = bytearray(2 * BLOCK)
    more[504] = 1  # of the first block: another follows
    members = walked(mended(block) + bytes(more) + bytes(data[BLOCK:]))
    assert list(members.places) == ["behind.jpg"]


def test_sparse_files_of_the_newer_kind() -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("GNUSparseFile.0/odd")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "odd"}
        tar.addfile(info)
        tar.addfile(tarfile.TarInfo("behind.jpg"))
    members = walked(target.getvalue())
    assert list(members.places) == ["behind.jpg"]
    assert members.problems == {"sparse file": (1, "odd")}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../up.jpg", "name leaves the archive"), ("a/../../b.jpg", "name leaves the archive"),
        ("/etc/passwd", "name leaves the archive"), ("//etc/passwd", "name leaves the archive"),
        (".", "name leaves the archive"), ("", "name leaves the archive"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dialect", FORMATS)
def test_names_that_leave_are_left_out(name: str, reason: str, dialect: int) -> None:
    members = walked(archive({name: b"1", "b.jpg": b"2"}, dialect))
    assert list(members.places) == ["b.jpg"]
    assert members.problems == {reason: (1, name)}


def test_names_that_no_key_can_hold() -> None:
    nul = archive({"a\0b.jpg": b"1", LONG: b"2"})
    path = b"path=" + LONG.encode()
    assert nul.count(path) == 1
    members = walked(nul.replace(path, path[:9] + b"\0" + path[10:]))
    assert members.problems["name leaves the archive"][0] == 1
    latin = archive({"caf-.jpg": b"1", "b.jpg": b"2"}, tarfile.USTAR_FORMAT)
    block = mended(latin[:BLOCK].replace(b"caf-", b"caf\xe9"))
    members = walked(block + latin[BLOCK:])
    assert list(members.places) == ["b.jpg"]
    assert members.problems == {"name is not UTF-8": (1, r"caf\xe9.jpg")}


def test_the_last_of_equal_names_counts() -> None:
    data = archive([("a", b"1"), ("b", b"2"), ("./a", b"33")])
    assert contents(data) == {"b": b"2", "a": b"33"}
    assert walked(data).problems == {"replaced by a later member of its name": (1, "a")}


@pytest.mark.parametrize("dialect", FORMATS)
def test_a_truncated_member_costs_itself_alone(dialect: int) -> None:
    data = archive({"a.jpg": b"1" * 900, "b.jpg": b"2" * 900}, dialect)
    cut = data[: data.index(b"2" * 900) + 899]
    members = walked(cut)
    assert list(members.places) == ["a.jpg"]
    assert members.problems == {"truncated member": (1, "b.jpg")}
    whole = data[: data.index(b"2" * 900) + 900]  # no padding, no end mark: nothing is missing
    assert contents(whole) == {"a.jpg": b"1" * 900, "b.jpg": b"2" * 900}
    assert walked(whole).problems == {}


def test_a_truncated_header() -> None:
    data = archive({"a.jpg": b"1" * 512, "b.jpg": b"2", LONG: b"3"})
    for length in (1024 + 300, 1024 + 1024 + 100, 1024 + 1024 + 512 + 10):
        members = walked(data[:length])
        assert members.problems == {"truncated header": (1, ["a.jpg", "b.jpg"][length > 1500])}


def test_a_damaged_header_costs_its_member_alone() -> None:
    data = archive({f"{n}.jpg": bytes([n]) * 5000 for n in range(5)})
    for victim in range(5):
        at = data.index(b"%d.jpg" % victim)
        for byte in (0, 130, 150, 257, 300):
            spoiled = data[: at + byte] + bytes([data[at + byte] ^ 1]) + data[at + byte + 1 :]
            members = walked(spoiled)
            assert list(members.places) == [f"{n}.jpg" for n in range(5) if n != victim]
            where = f"after '{victim - 1}.jpg'" if victim else "the first"
            assert members.problems == {"damaged header": (1, where)}


def test_a_damaged_extended_header_costs_its_member_alone() -> None:
    data = archive({"a": b"1", LONG: b"2", "b": b"3"})
    at = data.index(b" path=")
    for spoiled in (data[: at - 1] + b"x" + data[at:], data[: at + 1] + b"size" + data[at + 5 :]):
        members = walked(spoiled)
        assert list(members.places) == ["a", "b"]
        assert reasons(members) == ["damaged extended header"]
    huge = bytearray(archive({LONG: b"2", "b": b"3"}))
    size = parse_header(bytes(huge[:BLOCK])).size  # type: ignore[union-attr]
    block = mended(bytes(huge[:124]) + b"%011o\0" % (2**21) + bytes(huge[136:BLOCK]))
    body = bytes(huge[BLOCK : BLOCK + size]).ljust(2**21, b"\0")
    rest = bytes(huge[BLOCK + (size + 511) // 512 * 512 :])
    members = walked(block + body + rest)
    assert list(members.places) == ["b"]
    assert reasons(members) == ["oversized extended header"]


def test_what_is_no_archive_says_what_it_is() -> None:
    tar = archive({"a": b"1"})
    assert reasons(walked(gzip.compress(tar)))[0].startswith("compressed (gzip): decompress")
    for data in (b"PK\3\4" + bytes(600), b"\x28\xb5\x2f\xfd" + bytes(20)):
        assert reasons(walked(data))[0].startswith("compressed (z")
    assert walked(b"").problems == {"empty file": (1, "")}
    assert walked(b"hello").problems == {"not a tar archive": (1, "")}
    assert walked(b"hello" * 999).problems == {"not a tar archive": (1, "")}
    assert walked(bytes(10240)) == Members()


def test_joined_archives_say_so() -> None:
    joined = archive({"a": b"1"}) + archive({"b": b"2"})
    assert list(contents(joined)) == list(as_tarfile_reads(joined)) == ["a"]
    assert "joined by cat" in reasons(walked(joined))[0]


def test_small_members_share_a_read_and_large_ones_are_skipped() -> None:
    reads: list[int] = []

    def counted(data: bytes) -> int:
        reads.clear()

        def read(start: int, length: int) -> bytes:
            found = data[start : start + length]
            reads.append(len(found))
            return found

        return len(read_members(read, len(data)).places)

    assert counted(archive({f"{n}": b"x" * 1000 for n in range(4000)})) == 4000
    assert len(reads) < 12
    large = archive({f"{n}": bytes(2**20) for n in range(20)})
    assert counted(large) == 20
    assert len(reads) <= 21
    assert sum(reads) < len(large) / 20


ARCHIVES = [
    archive([("a.jpg", b"1" * 700), (LONG, b"2"), ("c", b""), ("d/e", b"3" * 1500)], dialect)
    for dialect in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
] + [entry(tarfile.GNUTYPE_SPARSE, size=600)]


@settings(max_examples=examples(300), deadline=None)
@given(st.data())
def test_damaged_archives_never_crash_nor_point_outside(data: st.DataObject) -> None:
    spoiled = bytearray(data.draw(st.sampled_from(ARCHIVES)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(spoiled) - 1))
        spoiled[at] = data.draw(st.sampled_from([0, 255, 0x80, 0x37, 0x30, spoiled[at] ^ 1]))
        if data.draw(st.booleans()):  # a wrong header whose checksum is right
            start = at // BLOCK * BLOCK
            spoiled[start : start + BLOCK] = mended(bytes(spoiled[start : start + BLOCK]))
    cut = data.draw(st.integers(0, len(spoiled)))
    walked(bytes(spoiled))
    walked(bytes(spoiled[:cut]))


@settings(max_examples=examples(100), deadline=None)
@given(st.binary(max_size=4000))
def test_noise_is_no_archive(noise: bytes) -> None:
    assert not walked(noise).places
