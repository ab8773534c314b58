"""The dev command as a newcomer meets it: in a small checkout where it sets up, in this one where it runs."""

import ast
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hareline.loopback import free_ports, speaks_amqp

pytestmark = pytest.mark.machine

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 300.0


def plain_environment(**changes: str) -> dict[str, str]:
    """The environment of this process without what would lead a command to this project's own setting."""
    dropped = {"VIRTUAL_ENV", "PYTHONPATH", "PYTEST_CURRENT_TEST", "PYTEST_ADDOPTS"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {name: value for name, value in kept.items() if not name.startswith("HARELINE_")} | changes


def dev(checkout: Path, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ./dev with the Python that runs the tests, as one of 3.11 or newer that is sure to be there."""
    return subprocess.run(
        [base_python(), str(checkout / "dev"), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env=plain_environment(**environment),
        check=False,
    )


def base_python() -> str:
    """The Python behind the virtual environment: what a newcomer's python3 is."""
    return str(getattr(sys, "_base_executable", sys.executable))


@pytest.fixture
def small_checkout(tmp_path):
    """The dev command with one real package of the real lock, so that setting up is real and short."""
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8"))
    entry = next(part for part in entries if part.startswith("iniconfig=="))
    checkout = tmp_path / "a checkout"
    (checkout / "requirements").mkdir(parents=True)
    (checkout / "requirements" / "dev.txt").write_text(entry + "\n", encoding="utf-8")
    shutil.copy(ROOT / "dev", checkout / "dev")
    (checkout / "bench").mkdir()
    (checkout / "bench" / "run.py").write_text(
        "import sys, iniconfig, front_door\nprint('ran', sys.argv[1:])\nsys.exit(7)\n", encoding="utf-8"
    )
    (checkout / "front_door.py").write_text("", encoding="utf-8")
    return checkout


def test_help_names_every_command_and_gives_examples():
    """Help needs no environment, names all commands, and shows examples; so does a call without a command."""
    asked = dev(ROOT, "--help")
    assert asked.returncode == 0
    for command in ("demo", "test", "check", "bench", "shell", "lock"):
        assert re.search(rf"^  {command}\b", asked.stdout, re.MULTILINE), command
    assert "./dev test --soak" in asked.stdout
    bare = dev(ROOT)
    assert bare.returncode == 2
    assert bare.stdout == asked.stdout


def test_an_unknown_command_is_bad_usage():
    """A typing error ends with exit code 2 and the way to the help, and sets nothing up."""
    done = dev(ROOT, "tset")
    assert done.returncode == 2
    assert "tset" in done.stderr
    assert "--help" in done.stderr


def test_an_old_python_can_still_read_the_script():
    """The script parses on Python 3.8, so that an old Python says what is wrong instead of a syntax error."""
    ast.parse((ROOT / "dev").read_text(encoding="utf-8"), feature_version=(3, 8))
    old = next((found for minor in (8, 9, 10) if (found := working_python(minor))), None)
    if old is None:
        return
    done = subprocess.run(
        [old, str(ROOT / "dev"), "test"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env={"PATH": str(Path(old).parent / "nowhere")},
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("dev: Python 3.11 or newer is needed")
    assert "Traceback" not in done.stderr


def working_python(minor: int) -> str | None:
    """The path of that Python itself, past any launcher, or None."""
    found = shutil.which(f"python3.{minor}")
    if found is None:
        return None
    asked = [found, "-c", "import sys; print(sys.executable)"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def test_a_fresh_checkout_sets_itself_up_once(small_checkout):
    """The first run makes the environment and passes arguments and exit code on; the second only runs."""
    first = dev(small_checkout, "bench", "--jobs", "10")
    assert first.returncode == 7, first.stderr
    assert "ran ['--jobs', '10']" in first.stdout
    assert "installing 1 pinned packages" in first.stdout
    assert (small_checkout / ".venv" / "bin" / "hareline").exists()
    second = dev(small_checkout, "bench")
    assert second.returncode == 7
    assert second.stdout == "ran []\n"


def test_a_set_up_that_was_cut_off_is_made_good(small_checkout):
    """After a crash in the middle of setting up, the next run ends the work."""
    dev(small_checkout, "bench")
    (small_checkout / ".venv" / "dev-stamp").unlink()
    for package in (small_checkout / ".venv").glob("lib/python*/site-packages/iniconfig*"):
        shutil.rmtree(package)
    assert "ran []" in dev(small_checkout, "bench").stdout
    (small_checkout / ".venv" / "bin" / "python").unlink()
    (small_checkout / ".venv" / "bin" / "python").symlink_to(small_checkout / "gone")
    assert "ran []" in dev(small_checkout, "bench").stdout


def test_a_package_that_is_not_the_pinned_one_is_refused(small_checkout):
    """A download whose hash is not in the lock is not installed; the reason is shown, without a traceback."""
    lock = small_checkout / "requirements" / "dev.txt"
    wrong = hashlib.sha256(b"something else").hexdigest()
    lock.write_text(re.sub(r"sha256:[0-9a-f]{64}", f"sha256:{wrong}", lock.read_text()), encoding="utf-8")
    done = dev(small_checkout, "bench")
    assert done.returncode == 1
    assert "ran" not in done.stdout
    assert "HASH" in done.stderr.upper()
    assert "dev: pip could not install the pinned packages" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_locks_are_portable():
    """Every requirement is pinned and hashed, and the locks name no index, no address and no local path."""
    for name in ("dev.txt", "all.txt"):
        text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
        entries = [part for part in re.split(r"\n(?=\S)", text.strip()) if not part.startswith("#")]
        assert len(entries) > 20
        for entry in entries:
            assert re.match(r"[a-z0-9-]+(\[[a-z,]+\])?==\S+", entry), entry
            assert "--hash=sha256:" in entry, entry
        assert not re.search(r"://|file:|--index|--find-links| @ ", text)


def test_exit_codes_are_passed_on():
    """What pytest says is what ./dev test says."""
    done = dev(ROOT, "test", "tests/unit/there_is_no_such_test.py")
    assert done.returncode == 4, done.stdout + done.stderr


def test_a_missing_broker_fails_in_ci():
    """In CI a broker that is set and does not answer fails the run; nothing is skipped."""
    nowhere = f"amqp://guest:guest@127.0.0.1:{free_ports(1)[0]}/"
    done = dev(ROOT, "shell", "-c", "true", CI="true", HARELINE_BROKER_URL=nowhere)
    assert done.returncode == 1
    assert "no broker answers at" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_shell_has_the_environment_and_a_broker_that_ends_with_it():
    """In the shell the commands are on the path and a broker is up; its exit code is passed on."""
    script = 'echo "$HARELINE_BROKER_URL $HARELINE_MANAGEMENT_URL"; command -v hareline; command -v pytest; exit 3'
    done = dev(ROOT, "shell", "-c", script, SHELL="/bin/sh")
    assert done.returncode == 3, done.stderr
    addresses, command, pytest_command = done.stdout.splitlines()[-3:]
    url, management_url = addresses.split()
    assert url.startswith("amqp://")
    assert management_url.startswith("http://")
    assert command == str(ROOT / ".venv" / "bin" / "hareline")
    assert pytest_command == str(ROOT / ".venv" / "bin" / "pytest")
    assert not speaks_amqp(url)


@pytest.mark.kills
def test_a_terminated_shell_takes_its_broker_along():
    """A SIGTERM to the whole of ./dev shell leaves no broker behind."""
    process = subprocess.Popen(
        [base_python(), str(ROOT / "dev"), "shell", "-c", "echo $HARELINE_BROKER_URL; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=plain_environment(SHELL="/bin/sh"),
        start_new_session=True,
    )
    url = next(line for line in process.stdout if line.startswith("amqp://")).strip()
    assert speaks_amqp(url)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(60)
    process.stdin.close()
    process.stdout.close()
    deadline = time.monotonic() + 60
    while speaks_amqp(url):
        assert time.monotonic() < deadline, "the broker is still up"
