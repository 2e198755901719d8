from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist


class SourceDistribution(sdist):
    """With the changelog, the tests and the recipes that they run.

    Listed here and not in a MANIFEST.in, because the top level of the repository is kept to a fixed set of files.
    """

    def make_release_tree(self, base_dir, files):
        kinds = {".md", ".py", ".yaml"}
        more = [
            str(path) for folder in ("tests", "recipes") for path in Path(folder).rglob("*") if path.suffix in kinds
        ]
        super().make_release_tree(base_dir, sorted({*files, "CHANGELOG.md", *more}))


setup(cmdclass={"sdist": SourceDistribution})
