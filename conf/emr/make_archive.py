"""Pack a Python with this package: ``spark-submit --archives environment.tar.gz#environment``.

    python3.11 conf/emr/make_archive.py --lock requirements-spark35.lock --out dist/environment.tar.gz

The archive holds the interpreter and its standard library too: EMR Serverless has another one, or none of its
version. It has no pyspark, which the platform brings. It runs on machines with this one's processor, and with
its C library or a later one: conf/emr/Dockerfile builds it for EMR. Imports only the standard library.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What no job imports, of the standard library.
_NOT_FOR_JOBS = "test tests idlelib tkinter turtledemo ensurepip"
_LEFT_OUT = shutil.ignore_patterns("site-packages", "dist-packages", "__pycache__", *_NOT_FOR_JOBS.split())
# The interpreter finds its library beside itself, wherever the archive is unpacked.
_START = """#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
export LD_LIBRARY_PATH="$here/../lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$here/python{version}" "$@"
"""


def read_constraints(lock: str) -> str:
    """The versions of a lock file, without hashes, and without pyspark, which is the platform's."""
    lines = (line.removesuffix("\\").strip() for line in Path(lock).read_text().splitlines())
    pins = [line for line in lines if re.match(r"[a-z0-9][\w.-]*==", line)]
    return "\n".join(pin for pin in pins if not pin.startswith(("pyspark==", "py4j=="))) + "\n"


def make_environment(folder: Path, lock: str) -> None:
    """Make a Python in `folder` that needs nothing outside of it but the C library."""
    version = "{}.{}".format(*sys.version_info)
    venv.EnvBuilder(symlinks=False, with_pip=True).create(folder)
    python = folder / "bin" / "python"
    constraints = folder / "constraints.txt"
    constraints.write_text(read_constraints(lock))
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    packages = [f"{ROOT}[dedup]", "pandas", "pyarrow"]
    subprocess.run([*pip, "--constraint", constraints, *packages], check=True)
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "pip", "setuptools"], check=True)
    library = folder / "lib" / f"python{version}"
    shutil.copytree(sysconfig.get_path("stdlib"), library, dirs_exist_ok=True, ignore=_LEFT_OUT)
    # Without this file Python takes the standard library beside it for its own.
    (folder / "pyvenv.cfg").unlink()
    constraints.unlink()
    shared = Path(sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("LDLIBRARY") or "")
    for found in shared.parent.glob(f"libpython{version}*.so*"):
        shutil.copy2(found, folder / "lib" / found.name)
    real = folder / "bin" / f"python{version}"
    interpreter = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    for name in ("python", "python3", f"python{version}"):
        (folder / "bin" / name).unlink(missing_ok=True)
    shutil.copy2(interpreter, real)
    python.write_text(_START.replace("{version}", version))
    python.chmod(0o755)
    (folder / "bin" / "python3").symlink_to("python")


def main() -> None:
    """Make the archive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lock", default=str(ROOT / "requirements-spark35.lock"), help="versions to take")
    parser.add_argument("--out", default="dist/environment.tar.gz")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "environment"
        make_environment(folder, given.lock)
        # It works by itself, or there is none.
        tried = "import marisa_trie, pandas, pyarrow, scipy, ssl, sqlite3, spark_dbp.cli"
        python = folder / "bin" / "python"
        subprocess.run([python, "-c", tried], check=True, cwd=made, env={"PATH": "/usr/bin:/bin"})
        out = Path(given.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(out, "w:gz", compresslevel=6) as archive:
            for item in sorted(folder.iterdir()):
                archive.add(item, item.name)
    print(f"{out}: {out.stat().st_size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
