# SPDX-License-Identifier: Apache-2.0
"""Which blob store the settings open, and what is said of one that cannot be."""

import subprocess
import sys

import pytest

from protocol.errors import InvalidUsage
from ps_service.settings import Settings
from ps_service.storage.files import FileBlobs
from ps_service.storage.objects import ObjectBlobs
from ps_service.storage.open_blobs import open_blobs


def test_files_of_the_data_directory_unless_told_otherwise(tmp_path):
    assert isinstance(open_blobs(Settings(), tmp_path), FileBlobs)


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/a/prefix", "gs://bucket/prefix"])
def test_an_object_store_by_its_url_with_its_spool_in_the_data_directory(tmp_path, url):
    assert isinstance(open_blobs(Settings(blobs_url=url), tmp_path), ObjectBlobs)
    assert [path.name for path in tmp_path.iterdir()] == ["spool"]


@pytest.mark.parametrize(
    "url",
    ["file:///srv", "memory:///", "https://bucket.example", "ftp://x", "bucket", "/srv/blobs", "s3:bucket"],
)
def test_a_url_of_no_known_kind_is_refused(tmp_path, url):
    with pytest.raises(InvalidUsage, match="FED_SOPHIA_BLOBS_URL"):
        open_blobs(Settings(blobs_url=url), tmp_path)


def test_a_store_that_cannot_be_told_is_refused_without_a_secret(tmp_path):
    with pytest.raises(InvalidUsage, match="incomplete or wrong") as refused:
        open_blobs(Settings(blobs_url="az://swordfish:hunter2@container/prefix"), tmp_path)
    assert "swordfish" not in refused.value.detail
    assert "hunter2" not in refused.value.detail


WITHOUT_OBSTORE = """
import sys
from pathlib import Path
sys.modules["obstore"] = None
from ps_service.settings import Settings
from ps_service.storage.open_blobs import open_blobs
open_blobs(Settings(), Path(sys.argv[1]))
open_blobs(Settings(blobs_url="s3://bucket"), Path(sys.argv[1]))
"""


def test_a_server_without_obstore_serves_files_and_says_what_objects_want(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_OBSTORE, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert "InvalidUsage" in done.stderr
    assert "its extra is not installed: pip install 'fed-sophia[cluster]'" in done.stderr
