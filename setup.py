"""Copies the lessons, which are pages of the documentation, into the package when a wheel is built."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithLessons(build_py):
    """Builds the package with `docs/lessons` as `resnetlab/lessons/notebooks`; an editable install reads `docs`."""

    def run(self) -> None:
        """Builds, then copies."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "resnetlab", "lessons", "notebooks")
        shutil.rmtree(target, ignore_errors=True)
        for file in (*Path("docs/lessons").glob("*.md"), *Path("docs/lessons").glob("images/*")):
            copy = target / file.relative_to("docs/lessons")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


setup(cmdclass={"build_py": BuildWithLessons})
