"""What pyproject.toml cannot say: the wheel has the examples, with the checkpoint, the data sets and the notebook that they name."""

from pathlib import Path
from shutil import copytree, ignore_patterns

from setuptools import setup
from setuptools.command.build_py import build_py

BUNDLED = ("examples", "dataset", "assets/tiny-flux-shapes", "notebooks")


class WithExamples(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # which finds them in the checkout
            for folder in BUNDLED:
                there = Path(self.build_lib, "flow_factory", "bundled", folder)
                copytree(folder, there, ignore=ignore_patterns("__pycache__", "*.py"), dirs_exist_ok=True)


setup(cmdclass={"build_py": WithExamples})
