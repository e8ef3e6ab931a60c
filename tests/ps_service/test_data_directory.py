# SPDX-License-Identifier: Apache-2.0
"""What the server leaves on the disk, and whether it notices that the disk takes nothing more."""

import stat
import subprocess
import sys

SERVE = """
import os, signal, sys
from pathlib import Path
from ps_service.server import serve
from ps_service.settings import Settings
settings = Settings(port=0, server_data_dir=Path(sys.argv[1]))
serve(settings, lambda url: os.kill(os.getpid(), signal.SIGTERM))
"""

CHECK = """
import resource, sys
from pathlib import Path
from protocol.errors import StorageNotWritable
from ps_service.storage.files import FileBlobs
blobs = FileBlobs(Path(sys.argv[1]))
blobs.check()
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    blobs.check()
except StorageNotWritable:
    sys.exit(42)
"""


def run(code, directory):
    command = [sys.executable, "-c", code, str(directory)]
    return subprocess.run(command, check=False, timeout=60).returncode


def test_everything_is_its_owner_s_alone_also_in_a_directory_open_to_all(tmp_path):
    directory = tmp_path / "data"
    directory.mkdir()
    directory.chmod(0o755)
    assert run(SERVE, directory) == 0
    assert (directory / "records.sqlite").exists()
    assert (directory / "blobs").is_dir()
    for path in directory.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_disk_that_takes_no_byte_is_not_ready(tmp_path):
    """A limit on the length of files stands for the full disk: an empty file can still be made."""
    assert run(CHECK, tmp_path) == 42
    assert list((tmp_path / "staging").iterdir()) == []
