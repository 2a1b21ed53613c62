"""Prints constraints.txt: the versions installed in the environment that runs this, which the tests have passed in.

No hashes: pip checks them for all packages or for none, an editable install has none, and torch's differ with the index
it comes from. What a version number does not protect against is a replaced file, and PyPI lets nobody replace one.

python3.11 -m venv fresh && fresh/bin/pip install -e ".[tests]" "jsonschema<4.25" torch==VERSION
fresh/bin/python .ci/constraints.py

jsonschema: from 4.25 on it brings rfc3987-syntax, which compiles 39 grammars when it is imported, four seconds in every
process that reads a notebook, JupyterLab's among them.
"""

from __future__ import annotations

import re
from importlib.metadata import Distribution, distributions

OLDEST_PYTHON = 10  # of requires-python: 3.10
# Installed by pip itself, pinned by torch, or this project.
LEFT_OUT = re.compile(r"pip|setuptools|wheel|nanovlm|triton|nvidia-.*|cuda-.*")
# What other systems need in addition; a constraint on a package that is not wanted has no effect.
OTHER_SYSTEMS = {
    "appnope": "1.0.0",  # macOS
    "colorama": "0.4.6",  # Windows
    "pywinpty": "3.1.2",  # Windows
    # older Pythons
    "exceptiongroup": "1.3.1",
    "tomli": "2.5.0",
}


def line(package: Distribution) -> str:
    name = re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()
    version = package.version.partition("+")[0]  # torch is 2.x.y+cpu, +cu130 …: any build will do
    minimum = re.search(r">=\s*3\.(\d+)", package.metadata["Requires-Python"] or "")
    newer = minimum is not None and int(minimum[1]) > OLDEST_PYTHON
    return f"{name}=={version}" + (f'; python_version >= "3.{minimum[1]}"' if newer else "")


def main() -> None:
    lines = {line(package) for package in distributions()}
    lines |= {f"{name}=={version}" for name, version in OTHER_SYSTEMS.items()}
    print("# The exact versions that the tests pass with; the floors stand in pyproject.toml.")
    print("# Made by .ci/constraints.py. Use: pip install -e '.[tests]' -c constraints.txt")
    print("\n".join(sorted(text for text in lines if not LEFT_OUT.fullmatch(text.partition("==")[0]))))


if __name__ == "__main__":
    main()
