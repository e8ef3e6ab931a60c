# SPDX-License-Identifier: Apache-2.0
"""The file of an archive: nothing hostile gets past its reader, and other programs read what is written."""

import gzip
import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_sophia.archive_file import ArchiveWriter, Place
from protocol.errors import DigestMismatch, FedSophiaError, InvalidMessage, MalformedArchive, MessageTooLarge
from protocol.messages import parse
from protocol.run_archive import MAX_DOCUMENT_BYTES, RunArchive
from tests.fed_sophia.small_run import PARAMS, TENSORS, FakeServer, a_document, files_in, read, read_all, tar


def member(name: str, content: bytes = b"", size: int | None = None, **fields: object) -> bytes:
    """A member of a tar; `size` is what its header says, whatever follows."""
    info = tarfile.TarInfo(name)
    info.size = len(content) if size is None else size
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


END = bytes(1024)
THIRD = f"tensors/{PARAMS[2]}"
DOCUMENT = member("run.json", a_document())
TENSOR = member(THIRD, TENSORS[PARAMS[2]])
WHOLE = DOCUMENT + TENSOR + END
LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
HARD_LINK = {"type": tarfile.LNKTYPE, "linkname": "run.json"}

HOSTILE: dict[str, tuple[bytes, type[FedSophiaError], str]] = {
    "nothing": (b"", MalformedArchive, "cut short"),
    "something else": (b"PK\x03\x04" + bytes(2000), MalformedArchive, "plain tar"),
    "a compressed archive": (gzip.compress(WHOLE), MalformedArchive, "cut short|plain tar"),
    "zeros": (bytes(4096), MalformedArchive, "expected run.json first, found nothing"),
    "a tensor first": (TENSOR + DOCUMENT + END, MalformedArchive, "expected run.json first"),
    "no document": (END, MalformedArchive, "expected run.json first, found nothing"),
    "a wrong digest": (
        DOCUMENT + member(THIRD, TENSORS[PARAMS[2]][::-1]) + END,
        DigestMismatch,
        PARAMS[2],
    ),
    "a tensor that is missing": (DOCUMENT + END, MalformedArchive, f"{THIRD}, of version 2: is missing"),
    "a tensor that nothing names": (
        DOCUMENT + TENSOR + member(f"tensors/{PARAMS[1]}", TENSORS[PARAMS[1]]) + END,
        MalformedArchive,
        "a version that is included",
    ),
    "a tensor twice": (DOCUMENT + TENSOR + TENSOR + END, MalformedArchive, "stands twice"),
    "a document twice": (DOCUMENT + DOCUMENT + TENSOR + END, MalformedArchive, "'run.json'"),
    "an absolute name": (DOCUMENT + member("/tmp/x", b"x") + END, MalformedArchive, "'/tmp/x'"),
    "a name that climbs": (DOCUMENT + member(f"../{THIRD}", b"x") + END, MalformedArchive, r"'\.\./"),
    "a name beside": (DOCUMENT + member(f"./{THIRD}", b"x") + END, MalformedArchive, r"'\./"),
    "an absolute document": (member("/run.json", a_document()) + END, MalformedArchive, "'/run.json'"),
    "a name without its folder": (
        DOCUMENT + member(PARAMS[2], TENSORS[PARAMS[2]]) + END,
        MalformedArchive,
        f"'{PARAMS[2]}'",
    ),
    "capital letters": (DOCUMENT + member(THIRD.upper(), b"x") + END, MalformedArchive, "'TENSORS/"),
    "a symbolic link": (DOCUMENT + member(THIRD, **LINK) + END, MalformedArchive, "regular file"),
    "a hard link": (DOCUMENT + member(THIRD, **HARD_LINK) + END, MalformedArchive, "regular file"),
    "a linked document": (member("run.json", **LINK) + END, MalformedArchive, "regular file"),
    "a folder": (DOCUMENT + member("tensors", type=tarfile.DIRTYPE) + END, MalformedArchive, "regular file"),
    "a device": (DOCUMENT + member(THIRD, type=tarfile.CHRTYPE) + END, MalformedArchive, "regular file"),
    "a sparse file": (
        DOCUMENT + member(THIRD, type=tarfile.GNUTYPE_SPARSE) + END,
        MalformedArchive,
        "regular",
    ),
    "a long name of 8 GiB": (
        member("x", size=8 << 30, type=tarfile.GNUTYPE_LONGNAME),
        MalformedArchive,
        "regular file",
    ),
    "an extended header of 8 GiB": (
        member("x", size=8 << 30, type=tarfile.XHDTYPE),
        MalformedArchive,
        "regular",
    ),
    "a document of 100 MB declared": (
        member("run.json", size=100_000_000) + END,
        MessageTooLarge,
        "100000000 bytes; at most 67108864",
    ),
    "a document longer than the file": (member("run.json", size=60_000_000), MalformedArchive, "cut short"),
    "a tensor of a petabyte": (DOCUMENT + member(THIRD, size=1 << 50), MessageTooLarge, "at most"),
    "a tensor longer than the file": (DOCUMENT + member(THIRD, size=60 << 30), MalformedArchive, "cut short"),
    "a negative size": (
        DOCUMENT + member(THIRD, size=-1),
        MessageTooLarge,
        "-1 bytes",
    ),
    "a header that was changed": (DOCUMENT + TENSOR.replace(b"tens", b"TENS") + END, MalformedArchive, "tar"),
    "a document that is no JSON": (member("run.json", b"{") + END, InvalidMessage, "RunArchive"),
    "a document that nests deeply": (member("run.json", b"[" * 10**6) + END, InvalidMessage, "RunArchive"),
    "a document of no run": (member("run.json", b"{}") + END, InvalidMessage, "spec"),
    "a field that would move the terminal": (
        member("run.json", a_document()[:-1] + b',"\\u001b[2Jx":1}') + END,
        InvalidMessage,
        r"RunArchive\.\\x1b\[2Jx: Extra inputs",
    ),
    "a field with a name of a megabyte": (
        member("run.json", a_document()[:-1] + b',"' + b"x" * 10**6 + b'":1}') + END,
        InvalidMessage,
        "^RunArchive.x{100,300}$",
    ),
    "a document of tomorrow": (
        member("run.json", a_document().replace(b'"schema_version":1', b'"schema_version":2', 1)) + END,
        InvalidMessage,
        "schema_version",
    ),
    "something behind the end": (WHOLE + b"x", MalformedArchive, "follows the end"),
    "an archive behind the end": (WHOLE + WHOLE, MalformedArchive, "follows the end"),
    "padding without end": (WHOLE + bytes(2 << 20), MalformedArchive, "follows the end"),
    "no second block of the end": (WHOLE[:-512], MalformedArchive, "the mark of the end"),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_hostile_archive_is_refused_by_name_before_anything_is_sent(
    what: str, tmp_path: Path
) -> None:
    content, error, says = HOSTILE[what]
    (tmp_path / "run.tar").write_bytes(content)
    server = FakeServer({})
    with pytest.raises(error, match=says):
        await server.take(tmp_path / "run.tar")
    assert server.asked == []
    assert files_in(tmp_path) == {"run.tar": content}


async def test_a_document_of_100_mb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "run.tar"
    with path.open("wb") as file:
        file.write(member("run.json", size=100_000_000))
        file.truncate(200_000_000)  # it is there, as zeros that take no room
    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLarge):
            await FakeServer({}).take(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_an_archive_that_is_cut_anywhere_is_refused() -> None:
    assert list(read_all(io.BytesIO(WHOLE)).places) == [PARAMS[2]]
    for length in (*range(0, len(WHOLE), 100), len(WHOLE) - 1):
        with pytest.raises(MalformedArchive, match=r"cut short|expected run\.json"):
            read_all(io.BytesIO(WHOLE[:length]))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_the_bytes_are_they_are_read_or_refused_by_name(data: st.DataObject) -> None:
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_all(io.BytesIO(content))
    except FedSophiaError as error:
        assert error.detail.isprintable()


async def test_an_archive_that_another_program_packed_is_read(tmp_path: Path) -> None:
    await FakeServer().export(tmp_path / "run.tar", "all")
    tar(tmp_path, "xf run.tar")
    tar(tmp_path, "cf again.tar --format=gnu run.json tensors/*")
    assert read(tmp_path / "again.tar").archive == read(tmp_path / "run.tar").archive


def test_a_tensor_of_more_than_8_gib_is_written_as_other_programs_read_it() -> None:
    class Counted(io.BytesIO):
        """Keeps the headers, and of the rest only the length."""

        length = 0

        def write(self, data: object) -> int:
            assert isinstance(data, bytes)
            self.length += len(data)
            return super().write(data) if len(data) <= 4096 else len(data)

    file, size_bytes, chunk = Counted(), (8 << 30) + 1, bytes(1 << 26)
    writer = ArchiveWriter(file)
    writer.tensor("a" * 64, size_bytes)
    for _ in range(size_bytes // len(chunk)):
        writer.write(chunk)
    writer.write(b"x")
    writer.end()
    assert file.length == writer.size_bytes == 512 + size_bytes + 511 + 1024
    assert tarfile.TarInfo.frombuf(file.getvalue()[:512], "utf-8", "strict").size == size_bytes


def test_a_history_that_could_not_be_read_again_is_not_written() -> None:
    archive = parse(RunArchive, a_document())
    rounds = tuple(
        round_.model_copy(update={"reason": "x" * (MAX_DOCUMENT_BYTES // 2)}) for round_ in archive.rounds
    )
    with pytest.raises(MessageTooLarge, match=f"at most {MAX_DOCUMENT_BYTES} are written"):
        ArchiveWriter(io.BytesIO()).document(archive.model_copy(update={"rounds": rounds}))


def test_a_place_is_where_the_bytes_lie() -> None:
    (place,) = read_all(io.BytesIO(WHOLE)).places.values()
    assert place == Place(len(DOCUMENT) + 512, len(TENSORS[PARAMS[2]]))
    assert WHOLE[place.offset :][: place.size_bytes] == TENSORS[PARAMS[2]]
