# SPDX-License-Identifier: Apache-2.0
"""Prints what a part of us needs, so that an image has it in a layer that changes of ours leave alone.

    python3 dependencies.py server cluster > dependencies.txt

reads the pyproject.toml of the folder it runs in.
"""

import sys
import tomllib
from pathlib import Path


def dependencies(pyproject: str, extras: list[str]) -> list[str]:
    """The requirements of the project and of some of its extras, as pip takes them."""
    project = tomllib.loads(pyproject)["project"]
    chosen = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return [requirement for group in chosen for requirement in group]


if __name__ == "__main__":
    for each in dependencies(Path("pyproject.toml").read_text("utf-8"), sys.argv[1:]):
        print(each)  # noqa: T201
