"""Packs the configurations: `configs/` of the project is `maskclippp_jax/configs/` in a wheel.

All else is in pyproject.toml.
"""

import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    def run(self):
        super().run()
        if self.editable_mode:  # a checkout has them beside the package
            return
        for file in sorted(pathlib.Path("configs").rglob("*.py")):
            target = pathlib.Path(self.build_lib, "maskclippp_jax", file)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


setup(cmdclass=dict(build_py=BuildWithConfigs))
