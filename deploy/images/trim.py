# SPDX-License-Identifier: Apache-2.0
"""Takes out of a virtual environment what neither server nor worker reads, then compiles it.

    python3 trim.py /opt/fed-sophia

Some wheels come with symbols for a debugger, which go where there is a `strip` to take them out with.

What is compiled is never compared with its source again: an image is not edited, and a build that sets times
anew would have every start compile everything in vain, as its files cannot be written.
"""

import compileall
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# botocore describes some 450 services. We sign addresses ourselves; only who exchanges a role or a login
# for keys is asked for by its description (botocore.credentials, botocore.utils, botocore.tokens).
SERVICES_OF_AWS_THAT_GIVE_KEYS = {"signin", "sso", "sso-oidc", "sts"}
# For who builds or tests something with these packages.
NOT_READ = (
    "alembic/testing",
    "sqlalchemy/testing",
    "torch/include",
    "torch/share",
    "torch/test",
)


def needless(packages: Path) -> Iterator[Path]:
    """Folders and files of a site-packages that nobody reads here."""
    yield from (each for each in packages.rglob("tests") if each.is_dir() and not _is_read(each))
    yield from (packages / name for name in NOT_READ)
    # it looks for this one when it is loaded; the rest are its tests and compilers
    yield from (each for each in packages.glob("torch/bin/*") if each.name != "torch_shm_manager")
    for service in (packages / "botocore" / "data").glob("*/"):
        if service.is_dir() and service.name not in SERVICES_OF_AWS_THAT_GIVE_KEYS:
            yield service


def _is_read(tests: Path) -> bool:
    # numpy.testing, which scipy loads, has its stand-in for pandas' missing value there
    return tests.parts[-3:] == ("numpy", "_core", "tests")


def strip(packages: Path) -> None:
    """Take debuggers' symbols out of extension modules.

    Libraries that wheels bring (`….libs`, `torch/lib`) stay as they are: tools have moved their parts about,
    and have taken most of it out.
    """
    program = shutil.which("strip")
    modules = [str(each) for each in packages.rglob("*.so") if ".libs" not in str(each.parent)]
    modules = [each for each in modules if not each.startswith(str(packages / "torch"))]
    if program and modules:
        subprocess.run([program, "--strip-debug", *modules], check=True)


def trim(environment: Path) -> None:
    for packages in environment.glob("lib/python*/site-packages"):
        for each in list(needless(packages)):
            if each.is_dir():
                shutil.rmtree(each)
            else:
                each.unlink(missing_ok=True)
        strip(packages)
        # some wheels bring files for a later Python, which cannot be compiled, nor are they loaded
        compileall.compile_dir(
            packages, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )


if __name__ == "__main__":
    trim(Path(sys.argv[1]))
