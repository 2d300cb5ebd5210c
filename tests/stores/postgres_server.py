"""A PostgreSQL server of its own for each process of tests, from the programs in the package pgserver."""

from __future__ import annotations

import atexit
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import psycopg


def empty_database() -> str:
    """Return the URL of a database without a store; there is one, so a store that was there is gone."""
    url = _server()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET client_min_messages TO warning")
        connection.execute("DROP SCHEMA IF EXISTS memwrite CASCADE")
    return url


@cache
def _server() -> str:
    found = importlib.util.find_spec("pgserver")
    assert found is not None, "the tests need the package pgserver: make install"
    assert found.origin is not None
    package = Path(found.origin).parent
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a socket's path is short
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    options: dict[str, Any] = {"cwd": folder}
    if (
        os.geteuid() == 0
    ):  # as whom PostgreSQL does not run, and others may not look into this folder's parents
        for part in ("pgserver/pginstall", "pgserver.libs"):
            shutil.copytree(package.parent / part, folder / part)
        package = folder / "pgserver"
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        options |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    data, programs = folder / "data", package / "pginstall" / "bin"
    make = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    made = subprocess.run([*make, "--locale=C", "--no-sync"], capture_output=True, **options)
    assert made.returncode == 0, made.stderr.decode()
    settings = ["fsync=off", "listen_addresses=", "shared_buffers=8MB"]
    log = (folder / "log").open("wb")
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, "-k", folder]
        + [word for setting in settings for word in ("-c", setting)],
        stdout=log,
        stderr=log,
        **options,
    )
    atexit.register(_stop, server)
    url = f"postgresql://postgres@/postgres?host={folder}"
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(url).close()
            return url
        except psycopg.OperationalError:
            told = (folder / "log").read_text()
            assert server.poll() is None, told
            assert time.monotonic() < deadline, told
            time.sleep(0.05)


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGINT)  # which ends the connections that are left
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
