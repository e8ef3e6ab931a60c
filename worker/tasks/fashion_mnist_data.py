# SPDX-License-Identifier: Apache-2.0
"""Where the Fashion-MNIST files come from.

Looked for, in this order: the folder the user names (`data_dir`, else FED_SOPHIA_DATA_DIR) or a folder
`fashion-mnist` in it; then, with a warning if a folder was named, the place of Debian's package
`dataset-fashion-mnist`; the user's cache. Fetched into that cache, in this order: Debian's package,
unpacked without root; the data set's own site. What is fetched must have the pinned SHA-256, and appears
in the cache whole or not at all.

Everything here blocks, every outside step with a time limit.
"""

import enum
import gzip
import hashlib
import http.client
import logging
import shutil
import subprocess
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protocol.errors import DataUnavailable

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
# This site speaks no TLS; the pinned SHA-256 is what decides.
ORIGIN = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
DOWNLOAD_TIMEOUT_S = 600.0
SOCKET_TIMEOUT_S = 30.0
MAX_FILE_BYTES = 64 * 1024**2
MAX_RAW_BYTES = 64 * 1024**2

log = logging.getLogger("fed_sophia.data")

Uint8Array = npt.NDArray[np.uint8]
Fetch = Callable[[Path], None]
"""Puts the four files into an empty folder, or raises DataUnavailable saying why it cannot."""


class Part(enum.Enum):
    """Which half of the data set; the value is how its file names begin."""

    TRAINING = "train"
    TEST = "t10k"

    @property
    def images(self) -> str:
        return f"{self.value}-images-idx3-ubyte.gz"

    @property
    def labels(self) -> str:
        return f"{self.value}-labels-idx1-ubyte.gz"


SHA256_OF_RAW = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Of the uncompressed content: Debian's gzip headers differ from the published ones, the content does not."""


# --- fetching --------------------------------------------------------------------------------------


def from_debian(folder: Path) -> None:
    """Fetch Debian's package with the system's own apt, and unpack it without installing."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise DataUnavailable("this system has no apt-get and dpkg-deb")
    with tempfile.TemporaryDirectory() as scratch:
        _run(["apt-get", "download", DEBIAN_PACKAGE], Path(scratch))
        packages = list(Path(scratch).glob("*.deb"))
        if len(packages) != 1:
            raise DataUnavailable(f"apt-get download {DEBIAN_PACKAGE} left {len(packages)} packages")
        _run(["dpkg-deb", "-x", packages[0].name, "unpacked"], Path(scratch))
        unpacked = Path(scratch) / "unpacked" / DEBIAN_FOLDER.relative_to("/")
        for name in SHA256_OF_RAW:
            shutil.copyfile(unpacked / name, folder / name)


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=DOWNLOAD_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise DataUnavailable(f"{' '.join(command[:2])} failed ({type(error).__name__})") from error


def from_origin(folder: Path, origin: str = ORIGIN, timeout_s: float = DOWNLOAD_TIMEOUT_S) -> None:
    """Download the four files from the data set's own site."""
    deadline = time.monotonic() + timeout_s
    for name in SHA256_OF_RAW:
        try:
            with urllib.request.urlopen(f"{origin}/{name}", timeout=SOCKET_TIMEOUT_S) as response:
                received = bytearray()
                while chunk := response.read(1 << 16):
                    received += chunk
                    if len(received) > MAX_FILE_BYTES or time.monotonic() > deadline:
                        raise DataUnavailable(f"{origin}/{name} is too large or too slow")
        except (OSError, http.client.HTTPException) as error:
            raise DataUnavailable(f"{origin} did not answer ({error})") from error
        (folder / name).write_bytes(received)


# --- finding ---------------------------------------------------------------------------------------


def find_or_fetch(
    data_dir: Path | None,
    environment: Mapping[str, str],
    *,
    system_folder: Path = DEBIAN_FOLDER,
    fetches: Sequence[Fetch] = (from_debian, from_origin),
) -> Path:
    """Give the folder that holds the four files, fetching them into the cache if there is none.

    Raises:
        DataUnavailable: no place has them and nothing could be fetched; names every place.
    """
    cache = _cache_folder(environment)
    named = data_dir or environment.get("FED_SOPHIA_DATA_DIR")
    places = [Path(named), Path(named) / "fashion-mnist"] if named else []
    for place in places:
        if _holds_all(place):
            return place
    if named:
        log.warning("%s does not hold the four Fashion-MNIST files; looking elsewhere", named)
    for place in (system_folder, cache):
        if _holds_all(place):
            return place
    reasons = []
    for fetch in fetches:
        try:
            _fetch_into(cache, fetch)
        except DataUnavailable as error:
            reasons.append(error.detail)
        else:
            return cache
    looked = ", ".join(str(place) for place in (*places, system_folder, cache))
    raise DataUnavailable(
        f"Fashion-MNIST is in none of {looked}; {'; '.join(reasons) or 'nothing was fetched'}"
    )


def _cache_folder(environment: Mapping[str, str]) -> Path:
    caches = environment.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "fed-sophia" / "fashion-mnist"


def _holds_all(folder: Path) -> bool:
    return all((folder / name).is_file() for name in SHA256_OF_RAW)


def _fetch_into(cache: Path, fetch: Fetch) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent, prefix=".fashion-mnist-") as scratch:
            files = Path(scratch) / "files"
            files.mkdir()
            fetch(files)
            for name, expected in SHA256_OF_RAW.items():
                found = hashlib.sha256(_gunzip(files / name)).hexdigest()
                if found != expected:
                    raise DataUnavailable(f"{name} as fetched has SHA-256 {found}, expected {expected}")
            files.rename(cache)
    except OSError as error:
        if not _holds_all(cache):  # else another process was faster
            raise DataUnavailable(f"{cache} cannot be filled ({error})") from error


# --- reading -------------------------------------------------------------------------------------


def read_examples(folder: Path, part: Part) -> tuple[Uint8Array, Uint8Array]:
    """Give images, shape (N, 28, 28), and labels, shape (N,), of one part.

    Raises:
        DataUnavailable: a file is damaged, or the two do not belong together.
    """
    images = parse_idx(_gunzip(folder / part.images), part.images, num_dimensions=3)
    labels = parse_idx(_gunzip(folder / part.labels), part.labels, num_dimensions=1)
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        raise DataUnavailable(f"{part.images} and {part.labels}: shapes {images.shape} and {labels.shape}")
    if labels.size and labels.max() > 9:
        raise DataUnavailable(f"{part.labels}: expected labels 0 to 9, found {labels.max()}")
    return images, labels


def parse_idx(content: bytes, name: str, *, num_dimensions: int) -> Uint8Array:
    """Read an IDX file of bytes: 0, 0, type 8, number of dimensions, then each size in 4 bytes, then data.

    Raises:
        DataUnavailable: the content is anything else, or has a byte too few or too many.
    """
    header_bytes = 4 + 4 * num_dimensions
    if len(content) < header_bytes:
        raise DataUnavailable(f"{name}: {len(content)} bytes are no IDX header")
    expected = bytes([0, 0, 8, num_dimensions])
    if content[:4] != expected:
        raise DataUnavailable(f"{name}: begins with {content[:4].hex()}, expected {expected.hex()}")
    shape = tuple(int(size) for size in np.frombuffer(content[4:header_bytes], dtype=">u4"))
    data = np.frombuffer(content, dtype=np.uint8, offset=header_bytes)
    num_bytes = int(np.prod(shape, dtype=object))
    if data.size != num_bytes:
        raise DataUnavailable(f"{name}: shape {shape} takes {num_bytes} bytes, found {data.size}")
    return data.reshape(shape).copy()  # a view of bytes could not be written to


def _gunzip(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            content = file.read(MAX_RAW_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataUnavailable(f"{path.name} cannot be unpacked ({error})") from error
    if len(content) > MAX_RAW_BYTES:
        raise DataUnavailable(f"{path.name} unpacks to more than {MAX_RAW_BYTES} bytes")
    return content
