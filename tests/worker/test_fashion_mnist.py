# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST: reading the files, and where they are looked for and fetched from."""

import functools
import gzip
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import DataUnavailable
from worker.tasks import load_task
from worker.tasks.fashion_mnist_data import (
    DEBIAN_FOLDER,
    SHA256_OF_RAW,
    Part,
    find_or_fetch,
    from_origin,
    parse_idx,
    read_examples,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([0, 9, 3, 3, 1], dtype=np.uint8)


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + values.tobytes()


def write_files(folder: Path, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part in Part:
        (folder / part.images).write_bytes(gzip.compress(idx(images)))
        (folder / part.labels).write_bytes(gzip.compress(idx(labels)))
    return folder


def find(
    tmp_path: Path,
    data_dir: Path | None = None,
    named: Path | None = None,
    fetches: tuple[Callable[[Path], None], ...] = (),
) -> Path:
    """Look for the files with everything outside of `tmp_path` out of sight."""
    environment = {"XDG_CACHE_HOME": str(tmp_path / "caches")}
    if named:
        environment["FED_SOPHIA_DATA_DIR"] = str(named)
    return find_or_fetch(data_dir, environment, system_folder=tmp_path / "system", fetches=fetches)


# --- reading ---------------------------------------------------------------------------------------


def test_images_and_labels_are_read_as_they_were_written(tmp_path: Path) -> None:
    images, labels = read_examples(write_files(tmp_path), Part.TEST)
    assert np.array_equal(images, IMAGES) and np.array_equal(labels, LABELS)


def test_a_task_gives_normalised_pixels_from_the_folder_it_is_given(tmp_path: Path) -> None:
    write_files(tmp_path)
    training = load_task("fashion-mnist-cnn", tmp_path).training_data()
    assert training.inputs.shape == (5, 1, 28, 28)
    np.testing.assert_allclose(
        training.inputs[:, 0].numpy(), (IMAGES / 255 - 0.286) / 0.353, rtol=1e-5, atol=1e-6
    )
    assert training.targets.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes are no IDX header"),
        (idx(LABELS)[:7], "7 bytes are no IDX header"),
        (idx(IMAGES), "begins with 00000803, expected 00000801"),
        (b"\x00\x00\x0d\x01" + idx(LABELS)[4:], "begins with 00000d01, expected 00000801"),
        (idx(LABELS)[:-1], r"shape \(5,\) takes 5 bytes, found 4"),
        (idx(LABELS) + b"\x00", r"shape \(5,\) takes 5 bytes, found 6"),
        (b"\x00\x00\x08\x01\xff\xff\xff\xff", "takes 4294967295 bytes, found 0"),
    ],
)
def test_a_damaged_file_is_refused_with_what_was_found(content: bytes, reason: str) -> None:
    with pytest.raises(DataUnavailable, match=reason):
        parse_idx(content, "labels", num_dimensions=1)


def test_sizes_whose_product_overflows_64_bits_are_refused() -> None:
    with pytest.raises(DataUnavailable, match="takes 79228162458924105385300197375 bytes"):
        parse_idx(b"\x00\x00\x08\x03" + b"\xff" * 12, "images", num_dimensions=3)


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (IMAGES, LABELS[:4], r"shapes \(5, 28, 28\) and \(4,\)"),
        (IMAGES[:, :27], LABELS, r"shapes \(5, 27, 28\) and \(5,\)"),
        (IMAGES, LABELS + 1, "expected labels 0 to 9, found 10"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, reason: str
) -> None:
    with pytest.raises(DataUnavailable, match=reason):
        read_examples(write_files(tmp_path, images, labels), Part.TRAINING)


@pytest.mark.parametrize("content", [b"not gzip at all", gzip.compress(idx(IMAGES))[:-20]])
def test_a_file_that_cannot_be_unpacked_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    write_files(tmp_path)
    (tmp_path / Part.TEST.images).write_bytes(content)
    with pytest.raises(DataUnavailable, match=r"t10k-images-idx3-ubyte\.gz cannot be unpacked"):
        read_examples(tmp_path, Part.TEST)


# --- finding and fetching ------------------------------------------------------------------------


def test_places_are_looked_at_in_their_order(tmp_path: Path) -> None:
    given, named = tmp_path / "given", tmp_path / "named"
    cache = write_files(tmp_path / "caches/fed-sophia/fashion-mnist")
    assert find(tmp_path, given, named) == cache
    system = write_files(tmp_path / "system")
    assert find(tmp_path, given, named) == system
    write_files(named / "fashion-mnist")
    assert find(tmp_path, None, named) == named / "fashion-mnist"
    write_files(named)
    assert find(tmp_path, None, named) == named
    write_files(given)
    assert find(tmp_path, given, named) == given


@pytest.mark.parametrize("by_option", [True, False], ids=["--data-dir", "FED_SOPHIA_DATA_DIR"])
def test_a_named_folder_that_lacks_one_file_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, by_option: bool
) -> None:
    given, system = write_files(tmp_path / "given"), write_files(tmp_path / "system")
    (given / Part.TEST.labels).unlink()
    assert (find(tmp_path, given) if by_option else find(tmp_path, named=given)) == system
    [record] = caplog.records
    assert (record.name, record.levelname) == ("fed_sophia.data", "WARNING")
    assert record.getMessage().startswith(f"{given} does not hold the four Fashion-MNIST files")


def test_nothing_is_warned_of_where_no_folder_was_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    system = write_files(tmp_path / "system")
    assert find(tmp_path) == system
    assert not caplog.records


def test_when_nothing_helps_one_sentence_names_every_place_and_every_failure(tmp_path: Path) -> None:
    def no_network(folder: Path) -> None:
        raise DataUnavailable("there is no network")

    with pytest.raises(DataUnavailable) as raised:
        find(tmp_path, tmp_path / "given", fetches=(no_network,))
    assert raised.value.detail.startswith(f"Fashion-MNIST is in none of {tmp_path / 'given'}, ")
    for place in ("given", "given/fashion-mnist", "system", "caches/fed-sophia/fashion-mnist"):
        assert str(tmp_path / place) in raised.value.detail
    assert "there is no network" in raised.value.detail


def test_fetched_files_that_are_not_the_published_ones_never_reach_the_cache(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"as fetched has SHA-256 [0-9a-f]{64}, expected c59f"):
        find(tmp_path, fetches=(write_files_into,))
    assert list((tmp_path / "caches/fed-sophia").iterdir()) == []


def write_files_into(folder: Path) -> None:
    write_files(folder)


def test_a_cache_that_cannot_be_written_is_one_more_reason_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "caches").write_text("a file where a folder should be")
    with pytest.raises(DataUnavailable, match="cannot be filled"):
        find(tmp_path, fetches=(write_files_into,))


def test_the_published_files_are_cached_once_and_then_found(
    tmp_path: Path, require_part: Callable[[bool, str], None]
) -> None:
    require_part(DEBIAN_FOLDER.is_dir(), str(DEBIAN_FOLDER))

    def from_this_machine(folder: Path) -> None:
        for name in SHA256_OF_RAW:
            (folder / name).write_bytes((DEBIAN_FOLDER / name).read_bytes())

    cache = find(tmp_path, fetches=(from_this_machine,))
    assert cache == tmp_path / "caches/fed-sophia/fashion-mnist"
    assert find(tmp_path, fetches=()) == cache


def test_the_published_data_are_60000_and_10000_with_every_label_equally_often(
    require_part: Callable[[bool, str], None],
) -> None:
    require_part(DEBIAN_FOLDER.is_dir(), str(DEBIAN_FOLDER))
    task = load_task("fashion-mnist-mlp", DEBIAN_FOLDER)
    training, evaluation = task.training_data(), task.evaluation_data()
    assert training.targets.bincount().tolist() == [6000] * 10
    assert evaluation.targets.bincount().tolist() == [1000] * 10
    assert abs(training.inputs.mean().item()) < 0.005
    assert abs(training.inputs.std().item() - 1) < 0.005


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[str]:
    """A web server on loopback that offers generated files."""
    folder = write_files(tmp_path / "origin")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_download_brings_all_four_files(tmp_path: Path, origin: str) -> None:
    from_origin(tmp_path, origin)
    images, _ = read_examples(tmp_path, Part.TRAINING)
    assert np.array_equal(images, IMAGES)


def test_a_download_that_fails_says_who_did_not_answer(tmp_path: Path, origin: str) -> None:
    (tmp_path / "origin" / Part.TEST.labels).unlink()
    with pytest.raises(DataUnavailable, match=r"127\.0\.0\.1:\d+ did not answer"):
        from_origin(tmp_path, origin)


def test_a_download_that_takes_too_long_is_given_up(tmp_path: Path, origin: str) -> None:
    with pytest.raises(DataUnavailable, match="too large or too slow"):
        from_origin(tmp_path, origin, timeout_s=-1)
