"""The archive itself: a writer whose bytes depend on the content alone, and a reader that takes nothing else than those bytes.

The reader parses tar headers one by one and accepts a header only if it is, byte for byte, the one that the writer makes for
that name and size. Links, devices, folders, extensions, odd owners, numbers in other forms and absolute names all fail
that one comparison; the checks before it only find the better words. Nothing is written while reading.

The file ends in a seal: a skippable zstd frame (other programs pass over it) with the SHA-256 of all bytes before it. A bit that
was changed or cut on the way, be it one that would unpack to the same, is found before anything is unpacked. It is no signature.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
import zstandard

from harness.bundle.format import (
    BUNDLE_SCHEMA,
    KIND,
    MANIFEST,
    MOST_BYTES,
    MOST_MANIFEST_BYTES,
    MOST_MEMBER_BYTES,
    MOST_MEMBERS,
    MOST_WINDOW_BYTES,
    Manifest,
    Member,
    is_member_name,
)
from harness.errors import BundleError

__all__ = ["compressed_bytes", "encode_manifest", "is_bundle", "read_archive", "sealed", "write_archive"]

_BLOCK = tarfile.BLOCKSIZE
_RECORD = tarfile.RECORDSIZE
_LEVEL = 12
_CHUNK = 1 << 18
_FRAME_HEAD_BYTES = 18
_OVERHEAD_BYTES = MOST_MANIFEST_BYTES + (MOST_MEMBERS + 40) * 2 * _BLOCK
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SEAL_HEAD = b"\x5b\x2a\x4d\x18" + (32).to_bytes(4, "little")  # one of zstd's skippable frames, with 32 bytes in it
_SEAL_BYTES = len(_SEAL_HEAD) + 32
_KINDS = {
    tarfile.LNKTYPE: "a hard link", tarfile.SYMTYPE: "a symbolic link", tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device", tarfile.DIRTYPE: "a folder", tarfile.FIFOTYPE: "a pipe",
    tarfile.XHDTYPE: "an extended header", tarfile.XGLTYPE: "a global extended header", tarfile.SOLARIS_XHDTYPE: "an extended header",
    tarfile.GNUTYPE_LONGNAME: "a long name", tarfile.GNUTYPE_LONGLINK: "a long link", tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.CONTTYPE: "a contiguous file", tarfile.AREGTYPE: "a file of the old kind",
}  # fmt: skip

Sink = Callable[[str, bytes], None]


# -- writing


def _header(name: str, size_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size_bytes, 0o644, 0
    return info.tobuf(format=tarfile.USTAR_FORMAT, encoding="ascii", errors="strict")


def encode_manifest(manifest: Manifest) -> bytes:
    """manifest.json as it stands in the archive."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def _compressor() -> zstandard.ZstdCompressor:
    # no threads: their number would show in the bytes
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True, write_content_size=True)


def compressed_bytes(content: bytes) -> int:
    """What a file of that content takes in an archive, nearly."""
    return len(_compressor().compress(content))


def write_archive(manifest: Manifest, content: Mapping[str, bytes]) -> bytes:
    """The archive of a manifest and the members that it lists. The same arguments give the same bytes."""
    plain = io.BytesIO()
    for name, data in ((MANIFEST, encode_manifest(manifest)), *((member.name, content[member.name]) for member in manifest.members)):
        plain.write(_header(f"{manifest.run_id}/{name}", len(data)))
        plain.write(data)
        plain.write(bytes(-len(data) % _BLOCK))
    plain.write(bytes(2 * _BLOCK))
    plain.write(bytes(-plain.tell() % _RECORD))
    return sealed(_compressor().compress(plain.getvalue()))


def sealed(frame: bytes) -> bytes:
    """A compressed archive with its seal behind it."""
    return frame + _SEAL_HEAD + hashlib.sha256(frame).digest()


# -- reading


def is_bundle(path: Path) -> bool:
    """Whether a path is a file that claims to be zstd-compressed."""
    try:
        with path.open("rb") as file:
            return file.read(4) == _ZSTD_MAGIC
    except OSError:
        return False


class _Part(io.RawIOBase):
    """The next `size` bytes of a file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__()
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._file.read(min(len(buffer), self._left))
        self._left -= len(part)
        buffer[: len(part)] = part
        return len(part)


def _check_seal(file: IO[bytes], label: str) -> int:
    """Hold every byte of the file against its seal; how many there are before it. The file is at its beginning afterwards."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(len(_ZSTD_MAGIC)) != _ZSTD_MAGIC:
        raise BundleError(f"{label}: is no bundle: it is not compressed with zstd")
    file.seek(0)
    if size > MOST_BYTES + _OVERHEAD_BYTES:
        raise BundleError(f"{label}: has {size} bytes, more than any bundle")
    covered = max(0, size - _SEAL_BYTES)
    digest = hashlib.sha256()
    part = _Part(file, covered)
    while chunk := part.read(_CHUNK):
        digest.update(chunk)
    seal = file.read(_SEAL_BYTES + 1)
    file.seek(0)
    if len(seal) != _SEAL_BYTES or not seal.startswith(_SEAL_HEAD):
        raise BundleError(f"{label}: does not end in its seal: it was cut, or is no bundle")
    if seal != _SEAL_HEAD + digest.digest():
        raise BundleError(f"{label}: is damaged: it is not what its seal was made for")
    return covered


class _Stream:
    """The decompressed bytes, never more than `most_bytes` of them."""

    def __init__(self, file: IO[bytes], label: str, most_bytes: int) -> None:
        self.label = label
        self._left = most_bytes
        covered = _check_seal(file, label)
        try:
            frame = zstandard.get_frame_parameters(file.read(min(covered, _FRAME_HEAD_BYTES)))
        except zstandard.ZstdError as error:
            raise BundleError(f"{label}: is no bundle: {error}") from error
        if frame.content_size == zstandard.CONTENTSIZE_UNKNOWN or frame.content_size > MOST_BYTES + _OVERHEAD_BYTES:
            raise BundleError(f"{label}: does not say how much it unpacks to, or more than {MOST_BYTES} bytes")
        file.seek(0)
        # What stands behind the first frame is read too, and then is too much.
        self._reader = zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW_BYTES).stream_reader(
            io.BufferedReader(_Part(file, covered), _CHUNK), read_size=_CHUNK, read_across_frames=True
        )

    def read(self, count: int, *, what: str) -> bytes:
        """Exactly `count` bytes, or `BundleError`."""
        if count > self._left:
            raise BundleError(f"{self.label}: unpacks to more than its manifest declares")
        parts: list[bytes] = []
        missing = count
        while missing:
            part = self.some(missing)
            if not part:
                raise BundleError(f"{self.label}: ends in the middle of {what}")
            parts.append(part)
            missing -= len(part)
        self._left -= count
        return b"".join(parts)

    def some(self, most: int) -> bytes:
        try:
            return self._reader.read(min(most, _CHUNK))
        except zstandard.ZstdError as error:
            raise BundleError(f"{self.label}: is no sound zstd file: {error}") from error

    def limit(self, most_bytes: int) -> None:
        self._left = most_bytes


def read_archive(file: IO[bytes], *, label: str, sink: Sink | None = None, each_manifest: Callable[[Manifest], None] | None = None) -> Manifest:
    """Read a whole archive from a file that can seek, check it, and return its manifest. `sink` is given each member's name and content, in order.

    `each_manifest` is called with the manifest before any member is read, and may refuse it. Members are read whole, one at a
    time; memory stays below the largest that the manifest declares (at most 512 MiB). Raises `BundleError`, one line, for whatever
    isn't exactly an archive that `write_archive` makes.
    """
    stream = _Stream(file, label, MOST_MANIFEST_BYTES + 4 * _BLOCK)
    top, name, size = _next_header(stream, label, top=None)
    if name != MANIFEST:
        raise BundleError(f"{label}: begins with {name!r}, not with {MANIFEST}: no bundle of this program")
    if size > MOST_MANIFEST_BYTES:
        raise BundleError(f"{label}: its manifest announces {size} bytes, more than {MOST_MANIFEST_BYTES}")
    manifest = _manifest(_content(stream, size, what=MANIFEST), label=label)
    if manifest.run_id != top:
        raise BundleError(f"{label}: its manifest is of run {manifest.run_id!r}, its folder is called {top!r}")
    _check_members(manifest.members, label=label)
    if each_manifest is not None:
        each_manifest(manifest)
    rest = sum(_padded(member.size) + _BLOCK for member in manifest.members) + 2 * _BLOCK + _RECORD
    stream.limit(rest)
    for member in manifest.members:
        _, name, size = _next_header(stream, label, top=top)
        if name != member.name:
            raise BundleError(f"{label}: holds {name!r} where its manifest announces {member.name!r}")
        if size != member.size:
            raise BundleError(f"{label}: {name} announces {size} bytes, the manifest {member.size}")
        data = _content(stream, size, what=name)
        if hashlib.sha256(data).hexdigest() != member.sha256:
            raise BundleError(f"{label}: {name} does not have the digest that the manifest gives")
        if sink is not None:
            sink(name, data)
    _end(stream, label)
    return manifest


def _padded(size: int) -> int:
    return size + -size % _BLOCK


def _next_header(stream: _Stream, label: str, *, top: str | None) -> tuple[str, str, int]:
    """The next member's folder, its name below that, and its size."""
    block = stream.read(_BLOCK, what="a header")
    if not any(block):
        raise BundleError(f"{label}: ends before all that its manifest announces")
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise BundleError(f"{label}: holds a header that is none: {error}") from error
    shown = repr(info.name if len(info.name) <= 80 else f"{info.name[:77]}...")
    if block[156:157] != tarfile.REGTYPE:
        kind = _KINDS.get(block[156:157], f"of an unknown kind ({block[156:157]!r})")
        raise BundleError(f"{label}: {shown} is {kind}; a bundle holds plain files only")
    if info.name.startswith("/"):
        raise BundleError(f"{label}: {shown} is an absolute name")
    if ".." in info.name.split("/"):
        raise BundleError(f"{label}: {shown} leads out of its folder")
    if info.size < 0 or info.size > MOST_MEMBER_BYTES:
        raise BundleError(f"{label}: {shown} announces {info.size} bytes, more than a bundle may hold")
    folder, _, name = info.name.partition("/")
    if not folder or not name or (top is not None and folder != top):
        raise BundleError(f"{label}: {shown} is not in the run's folder")
    if name != MANIFEST and not is_member_name(name):
        raise BundleError(f"{label}: {shown} is no name that a bundle may hold")
    try:
        canonical = block == _header(info.name, info.size)
    except ValueError:
        canonical = False
    if not canonical:
        raise BundleError(f"{label}: the header of {shown} is not as this program writes it (owner, mode, time, numbers, a link)")
    return folder, name, info.size


def _content(stream: _Stream, size: int, *, what: str) -> bytes:
    data = stream.read(_padded(size), what=what)
    if any(data[size:]):
        raise BundleError(f"{stream.label}: something is hidden behind the end of {what}")
    return data[:size]


def _manifest(raw: bytes, *, label: str) -> Manifest:
    class Head(msgspec.Struct):
        kind: Any = None
        schema_version: Any = None

    try:
        head = msgspec.json.decode(raw, type=Head)
        if head.kind != KIND:
            raise BundleError(f"{label}: its manifest is none of a bundle")
        if type(head.schema_version) is not int or head.schema_version < 1:
            raise BundleError(f"{label}: its manifest has no schema version")
        if head.schema_version > BUNDLE_SCHEMA:
            raise BundleError(
                f"{label}: has bundle schema {str(head.schema_version)[:20]}, this program reads {BUNDLE_SCHEMA}: take a newer switchover"
            )
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{label}: its manifest is damaged: {error}") from error
    if raw != encode_manifest(manifest):  # a key twice, a number in another form
        raise BundleError(f"{label}: its manifest is not written as this program writes it")
    return manifest


def _check_members(members: Sequence[Member], *, label: str) -> None:
    seen: set[str] = set()
    for member in members:
        if not is_member_name(member.name):
            raise BundleError(f"{label}: its manifest announces {member.name!r}, no name that a bundle may hold")
        if member.name.lower() in seen:  # on a file system that ignores case, the second would be the first
            raise BundleError(f"{label}: announces {member.name!r} twice")
        seen.add(member.name.lower())
    if len(members) > MOST_MEMBERS:
        raise BundleError(f"{label}: announces {len(members)} files, more than {MOST_MEMBERS}")
    if (total := sum(member.size for member in members)) > MOST_BYTES:
        raise BundleError(f"{label}: announces {total} bytes unpacked, more than {MOST_BYTES}")


def _end(stream: _Stream, label: str) -> None:
    """Two empty blocks, filled up to a whole record, and nothing behind."""
    rest = b"".join(_parts(stream))
    if len(rest) < 2 * _BLOCK:
        raise BundleError(f"{label}: has no proper end")
    if any(rest) or len(rest) > 2 * _BLOCK + _RECORD:
        raise BundleError(f"{label}: holds more than its manifest announces")


def _parts(stream: _Stream) -> Iterator[bytes]:
    total = 0
    while total <= 2 * _BLOCK + _RECORD:
        part = stream.some(_CHUNK)
        if not part:
            return
        total += len(part)
        yield part
