#!/usr/bin/env python3
"""The AWS stand-in that the end-to-end tests talk to.

    python3 tests/emulator.py setup
        Makes the virtual environment of tests/ministack.txt under
        target/emulator/ (once; later calls return at once) and prints its bin
        directory: `ministack`, `aws` and `parliament` are there.

    python3 tests/emulator.py run [--auth on|off] [--port N]
        Also starts the emulator on 127.0.0.1 and prints one line of JSON,
            {"endpoint": "http://127.0.0.1:PORT", "bin": "/.../bin"}
        It runs until standard input reaches end of file or SIGTERM or SIGINT
        comes, or until a test process that started it has lost its parent:
        then it ends that as well. Then it kills what the tests have left
        running, which has CREDBROKER_TEST_RUN in its environment as this has. The root key is `rootkey`, its secret `rootsecret`. With
        `--auth off` it lets every request through: the control in which each
        test of a refusal must fail.

Standard library only. Messages go to standard error.
"""

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "tests" / "ministack.txt"
HOME = ROOT / "target" / "emulator"

OLDEST_PYTHON = (3, 10)
START_SECONDS = 60
STOP_SECONDS = 5
PORT_ATTEMPTS = 5
PR_SET_PDEATHSIG = 1
# The process id of the tests, in the environment of what they start.
TEST_RUN = "CREDBROKER_TEST_RUN"


class Failed(Exception):
    """Something a person must read; no traceback."""


class Stopped(BaseException):
    """SIGTERM or SIGINT came."""


# --- the virtual environment -------------------------------------------------


def setup():
    """The bin directory of a complete environment, made first if need be."""
    if not REQUIREMENTS.is_file():
        raise Failed(f"{REQUIREMENTS} is missing")
    key = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]
    env = HOME / key
    if not is_complete(env):
        HOME.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(HOME / "lock"):
            if not is_complete(env):
                build(env)
    return env / "bin"


def is_complete(env):
    """Scripts carry the path they were made for, so a moved one is not complete."""
    try:
        marker = (env / "complete").read_text()
    except OSError:
        return False
    return marker == str(env) and (env / "bin" / "python").exists()


@contextlib.contextmanager
def exclusive_lock(path):
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the kernel lets go if we die
        yield


def build(env):
    """Builds where it will stay, for a virtual environment cannot be moved.

    The marker is written last, so a build that was cut off is made again.
    """
    shutil.rmtree(env, ignore_errors=True)
    print("emulator: installing (once) ...", file=sys.stderr)
    command([suitable_python(), "-m", "venv", str(env)],
            "cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)")
    command([str(env / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input",
             "--disable-pip-version-check", "--require-hashes", "-r", str(REQUIREMENTS)],
            f"pip could not install {REQUIREMENTS.relative_to(ROOT)} "
            "(no network, no package index, or a hash that does not match)")
    if " " in str(env):
        quote_interpreter(env)
    (env / "complete").write_text(str(env))


def quote_interpreter(env):
    """Lets scripts start where the path has a space, which no `#!` line may have: pip does so
    for the scripts that it makes, and not for those that a package brings, such as `aws`."""
    python = env / "bin" / "python"
    # A shell runs the second line; for Python, it and the third are a string.
    start = f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n"
    for script in (env / "bin").iterdir():
        if script.is_symlink() or not script.is_file():
            continue
        first, _, rest = script.read_bytes().partition(b"\n")
        if first == f"#!{python}".encode():
            script.write_bytes(start.encode() + rest)


def suitable_python():
    if sys.version_info >= OLDEST_PYTHON:
        return sys.executable
    for minor in range(14, OLDEST_PYTHON[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        # A version manager's stand-in may be on the PATH and yet refuse to run.
        if found and subprocess.run([found, "-c", ""], stdin=subprocess.DEVNULL,
                                    stdout=subprocess.DEVNULL,
                                    stderr=subprocess.DEVNULL).returncode == 0:
            return found
    raise Failed("the emulator needs Python 3.10 or later, and none is on the PATH")


def command(argv, what_failed):
    dropped = ("PYTHONHOME", "PYTHONPATH", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")
    environment = {k: v for k, v in os.environ.items() if k not in dropped}
    done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace").strip()
        raise Failed(f"{what_failed}; it said:\n{said}")


# --- the emulator ------------------------------------------------------------


def run(auth, port):
    bin_dir = setup()
    with contextlib.ExitStack() as at_the_end:
        at_the_end.callback(kill_left_behind)
        # Whatever the emulator writes goes here, not into the caller's directory or home.
        scratch = Path(tempfile.mkdtemp(prefix="run-", dir=HOME))
        at_the_end.callback(shutil.rmtree, scratch, ignore_errors=True)
        process, port = start(bin_dir, auth, port, scratch, at_the_end)
        print(json.dumps({"endpoint": f"http://127.0.0.1:{port}", "bin": str(bin_dir)}), flush=True)
        wait_for_the_end(process, scratch)


def start(bin_dir, auth, wanted_port, scratch, at_the_end):
    """A healthy emulator and its port; tries again when another process took the port first."""
    for attempt in range(1, PORT_ATTEMPTS + 1):
        port = wanted_port or free_port()
        process = spawn(bin_dir, auth, port, scratch)
        at_the_end.callback(stop, process)
        if becomes_healthy(process, port, scratch):
            return process, port
        if wanted_port or attempt == PORT_ATTEMPTS:
            raise Failed(f"the emulator did not start on port {port}; it said:\n{log_of(scratch)}")
    raise AssertionError("unreachable")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def spawn(bin_dir, auth, port, scratch):
    # A fresh environment: no setting of the caller's shell changes what is enforced.
    environment = {
        "PATH": f"{bin_dir}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "STATE_DIR": str(scratch / "state"),
        "S3_DATA_DIR": str(scratch / "s3"),
        "LANG": "C.UTF-8",
        "AUTH": "true" if auth else "false",
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "AWS_ACCESS_KEY_ID": "rootkey",
        "AWS_SECRET_ACCESS_KEY": "rootsecret",
        "LOG_LEVEL": "WARNING",
    }
    with open(scratch / "log", "ab") as log:
        return subprocess.Popen([str(bin_dir / "ministack")], env=environment, cwd=scratch,
                                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                start_new_session=True, preexec_fn=die_with(os.getpid()))


def die_with(parent):
    """Linux kills the emulator when this launcher dies, even by SIGKILL."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)

    def before_exec():
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return before_exec


def becomes_healthy(process, port, scratch):
    # The emulator writes this file once it found the port free: without it, whoever
    # answers on the port is someone else.
    own = scratch / f"ministack-{port}.pid"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if own.exists() and answers(port):
            time.sleep(0.02)
            return process.poll() is None
        time.sleep(0.02)
    return False


def answers(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/_ministack/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_for_the_end(process, scratch):
    tests = int(os.environ.get(TEST_RUN, 0))
    started_by = parent_of(tests)
    while process.poll() is None:
        if parent_of(tests) != started_by:
            # Cargo was killed, and has not passed that on.
            os.kill(tests, signal.SIGTERM)
            return
        try:
            readable, _, _ = select.select([0], [], [], 0.2)
            if readable and not os.read(0, 4096):
                return
        except OSError:  # standard input is closed
            return
    raise Failed(f"the emulator ended by itself (status {process.returncode}); "
                 f"it said:\n{log_of(scratch)}")


def parent_of(process):
    """None where there is no such process or no /proc."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    return status.rsplit(")", 1)[1].split()[1]


def kill_left_behind():
    """Brokers and agents of tests that were killed."""
    mark = f"{TEST_RUN}={os.environ.get(TEST_RUN)}".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        process = int(environment.parent.name)
        with contextlib.suppress(OSError):
            if process != os.getpid() and mark in environment.read_bytes().split(b"\0"):
                os.kill(process, signal.SIGKILL)


def stop(process):
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
    # What it may have started is in its process group.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def log_of(scratch):
    with contextlib.suppress(OSError):
        return (scratch / "log").read_text(errors="replace").strip()[-4000:]
    return "(nothing)"


# --- command line ------------------------------------------------------------


def port_number(text):
    number = int(text)
    if not 1 <= number <= 65535:
        raise ValueError
    return number


def main():
    parser = argparse.ArgumentParser(description="The AWS stand-in of the tests.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("setup", help="install it and print its bin directory")
    runner = verbs.add_parser("run", help="start it; end of standard input stops it")
    runner.add_argument("--auth", choices=("on", "off"), default="on",
                        help="check signatures and policies (default: on)")
    runner.add_argument("--port", type=port_number, help="default: a free one")
    chosen = parser.parse_args()

    def on_signal(_number, _frame):
        # A second signal must not cut the clean-up short.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise Stopped

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        if chosen.verb == "setup":
            print(setup())
        else:
            run(chosen.auth == "on", chosen.port)
    except Failed as failure:
        sys.exit(f"emulator: {failure}")
    except Stopped:
        if chosen.verb == "setup":
            sys.exit("emulator: interrupted")


if __name__ == "__main__":
    main()
