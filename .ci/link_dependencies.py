"""Link the installed dependencies of a package into another environment, without the package itself.

    python link_dependencies.py "hf_gist[report]" SITE_PACKAGES

Only what the package declares is linked, with the dependencies of that, so an undeclared import fails there.
"""

import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def dependencies(requirement: Requirement) -> set[str]:
    """Names of all distributions that `requirement` needs, itself included."""
    found: set[tuple[str, str]] = set()
    waiting = [requirement]
    while waiting:
        wanted = waiting.pop()
        for extra in ("", *sorted(wanted.extras)):
            key = (canonicalize_name(wanted.name), extra)
            if key in found:
                continue
            found.add(key)
            declared = map(Requirement, distribution(wanted.name).requires or [])
            waiting += [r for r in declared if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def link(name: str, folder: Path) -> None:
    """Link the top-level files and folders of a distribution."""
    installed = distribution(name)
    for top in {path.parts[0] for path in installed.files or [] if path.parts[0] not in ("..", "__pycache__")}:
        if not (folder / top).exists():
            (folder / top).symlink_to(Path(str(installed.locate_file(top))).absolute())


if __name__ == "__main__":
    package = Requirement(sys.argv[1])
    for name in dependencies(package) - {canonicalize_name(package.name)}:
        link(name, Path(sys.argv[2]))
