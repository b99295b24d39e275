"""What ships. `make dist` builds it for this machine, looks into it and installs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import check_dist
import pytest


def test_every_file_of_data_is_declared() -> None:
    """An editable install hides a forgotten one."""
    declared = {
        path.relative_to(check_dist.ROOT).as_posix()
        for package, patterns in check_dist.PROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in check_dist.folder_of(package).glob(pattern)
    }
    paths = [check_dist.ROOT / name for name in check_dist.package_files()]
    modules = [path for path in paths if path.suffix == ".py" and (path.parent / "__init__.py").exists()]
    data = {path.relative_to(check_dist.ROOT).as_posix() for path in paths if path not in modules}
    assert declared == data


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="another system names its compilers otherwise")
def test_where_the_kernels_do_not_compile_the_wheel_is_for_any_platform(tmp_path: Path) -> None:
    environment = os.environ | {"CC": "false", "CXX": "false", "LDSHARED": "false"}
    command = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(check_dist.ROOT)]
    subprocess.run(command, env=environment, check=True)
    assert [wheel.name.partition("-py3-")[2] for wheel in tmp_path.glob("*.whl")] == ["none-any.whl"]
    assert check_dist.main(tmp_path) == 0
