"""A PostgreSQL for the tests: a cluster of its own in a temporary directory, under a user who
is not root. Tells how to reach it in a line of JSON once it answers, and ends when its standard
input closes; a line there kills it and starts it again. Installs Debian's package where there is
none and it may. With --check it only says whether there is one or it may install one."""

import contextlib
import glob
import json
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time


MISSING = "PostgreSQL 13 or newer. Debian and Ubuntu: apt-get install postgresql"


def installed():
    """The directory of the newest server's programs, if there is one."""
    found = glob.glob("/usr/lib/postgresql/*/bin/initdb")
    version = lambda path: int(path.split("/")[4].split(".")[0])
    if found:
        return os.path.dirname(max(found, key=version))
    there = shutil.which("initdb")
    return os.path.dirname(there) if there else None


def may_install():
    return os.getuid() == 0 and shutil.which("apt-get")


def programs():
    if not installed() and may_install():
        quiet = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        for command in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", "postgresql"]):
            subprocess.run(["apt-get", *command], check=True, env=quiet, stdout=sys.stderr)
    directory = installed()
    if not directory:
        sys.exit(MISSING)
    return directory


def user():
    """Who may run the server: nobody runs it as root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            pass
    sys.exit("the tests run as root and find no user `postgres` or `nobody` to run PostgreSQL as")


def free_port():
    """A port that no system gives to a connection by itself: the server stops and starts again."""
    for port in random.sample(range(30_000, 32_000), 2_000):
        with contextlib.suppress(OSError), socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            return port
    sys.exit("no port between 30000 and 32000 is free for PostgreSQL")


def main():
    if sys.argv[1:] == ["--check"]:
        sys.exit(None if installed() or may_install() else MISSING)
    bin_directory, runs_as = programs(), user()
    home, password, port = tempfile.mkdtemp(prefix="credbroker-postgres-"), secrets.token_hex(16), free_port()
    data, password_file = os.path.join(home, "data"), os.path.join(home, "password")
    with open(password_file, "w") as file:
        file.write(password)
    # TLS with what is in the directory that the tests have made.
    tls = []
    if len(sys.argv) > 1:
        for name in ("cert.pem", "key.pem"):
            shutil.copy(os.path.join(sys.argv[1], name), home)
            os.chmod(os.path.join(home, name), 0o600)
        tls = ["-c", "ssl=on", "-c", f"ssl_cert_file={home}/cert.pem", "-c", f"ssl_key_file={home}/key.pem"]
    who = {}
    if runs_as:
        for path in (home, *(os.path.join(home, name) for name in os.listdir(home))):
            os.chown(path, runs_as.pw_uid, runs_as.pw_gid)
        who = {"user": runs_as.pw_uid, "group": runs_as.pw_gid, "extra_groups": []}
    program = lambda name: os.path.join(bin_directory, name)
    subprocess.run(
        [program("initdb"), "-D", data, "-U", "credbroker", "-A", "scram-sha-256", f"--pwfile={password_file}",
         "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"],
        check=True, stdout=subprocess.DEVNULL, cwd="/", **who,
    )
    # Processes are killed here, machines are not: what the system has taken is safe.
    settings = ["fsync=off", "max_connections=400", "shared_buffers=64MB", "listen_addresses=127.0.0.1",
                f"unix_socket_directories={home}"]
    command = [program("postgres"), "-D", data, "-p", str(port), *(word for one in settings for word in ("-c", one)), *tls]
    log = os.path.join(home, "log")

    server = None

    def started():
        nonlocal server
        ready = [program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-U", "credbroker"]
        # Processes of one that was killed may still be ending: then it does not start at once.
        for _ in range(100):
            server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(log, "a"), cwd="/", **who,
            )
            while server.poll() is None:
                if subprocess.run(ready).returncode == 0:
                    return
                time.sleep(0.05)
            time.sleep(0.1)
        sys.exit(f"PostgreSQL does not start: {open(log).read()}")

    def killed():
        # Its other processes end by themselves once it is gone.
        server.kill()
        server.wait()

    def on_signal(_number, _frame):
        # A second signal must not cut the clean-up short.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(1)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        started()
        print(json.dumps({"address": f"127.0.0.1:{port}", "password": password, "programs": bin_directory}), flush=True)
        for _ in sys.stdin:
            killed()
            started()
            print("ready", flush=True)
    finally:
        if server:
            killed()
        shutil.rmtree(home, ignore_errors=True)


main()
