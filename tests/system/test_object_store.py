# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia serve` with its tensors in a real S3 server, told where by the environment alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np

from protocol.codec import NamedTensor, encode_message
from tests.s3 import SECRET_KEY, S3Server
from tests.system.conftest import READY_S, ServerProcess


def environment(s3: S3Server, tmp_path: Path) -> dict[str, str]:
    prefix = f"{tmp_path.parent.name}/{tmp_path.name}"
    return s3.environment | {"FED_SOPHIA_BLOBS_URL": s3.url(prefix)}


async def test_what_one_server_stores_another_has_on_another_machine_s_disk(
    s3: S3Server, tmp_path: Path
) -> None:
    message = encode_message("state", [NamedTensor("params", "weight", np.ones(3, np.float32), "f32")])
    variables = [f"{name}={value}" for name, value in environment(s3, tmp_path).items()]
    for number in range(2):
        server = ServerProcess(tmp_path / str(number) / "data")
        server.prefix = ("env", *variables)
        server.data_dir.mkdir(parents=True)
        await server.start()
        try:
            async with httpx.AsyncClient(base_url=server.url) as anybody:
                assert (await anybody.get("/readyz")).status_code == 200
            async with server.operator() as operator:
                if number == 0:
                    digest = await operator.put_tensors(message)
                assert await operator.has_tensors(digest)
        finally:
            await server.end(signal.SIGKILL)
        assert {path.name for path in server.data_dir.iterdir() if path.is_dir()} == {"spool"}
        assert list((server.data_dir / "spool").iterdir()) == []


def test_a_server_whose_credentials_are_refused_says_so_and_ends(s3: S3Server, tmp_path: Path) -> None:
    wrong = environment(s3, tmp_path) | {"AWS_SECRET_ACCESS_KEY": f"not-{SECRET_KEY}"}
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "fed_sophia",
            "serve",
            "--port",
            "0",
            "--data-dir",
            str(tmp_path / "data"),
        ],
        env=os.environ | wrong,
        capture_output=True,
        text=True,
        timeout=READY_S,
    )
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "the object store s3://fed-sophia refuses the server's credentials" in " ".join(said.split())
    assert SECRET_KEY not in said
    assert "Traceback" not in said
