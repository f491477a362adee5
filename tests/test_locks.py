"""Locks between processes: who has one, who gets it next, and who keeps it when a parent is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from regbench.locks import Lock

HOLD = """
import sys, time
from pathlib import Path
from regbench.locks import Lock
lock = Lock(Path(sys.argv[1]))
assert lock.acquire()
print("held", flush=True)
time.sleep(60)
"""
HAND_ON = """
import subprocess, sys, time
from pathlib import Path
from regbench.locks import Lock
lock = Lock(Path(sys.argv[1]))
assert lock.acquire()
command = [sys.executable, "-c", "import time; time.sleep(60)"]
child = subprocess.Popen(command, pass_fds=[lock.fileno()] if sys.argv[2] == "on" else [])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def start():
    """Starts a Python program and returns its process and the first line that it prints."""
    processes = []

    def call(program, *arguments):
        command = [sys.executable, "-c", program, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield call
    for process in processes:
        process.kill()
        process.wait()


def taken_within(lock: Lock, seconds: float) -> bool:
    """Whether the lock can be had, now or soon: the system closes a killed process's files a moment after."""
    end = time.monotonic() + seconds
    while not lock.acquire():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_another_process_has_it_until_it_is_killed(tmp_path, start):
    path = tmp_path / "folder" / ".lock"
    process, said = start(HOLD, path)
    assert said == "held"
    lock = Lock(path)
    assert not lock.acquire()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert taken_within(lock, 5)
    lock.release()


@pytest.mark.parametrize("handed_on", [True, False])
def test_a_child_that_it_was_handed_on_to_keeps_it_when_its_parent_is_killed(tmp_path, start, handed_on):
    path = tmp_path / ".lock"
    parent, child = start(HAND_ON, path, "on" if handed_on else "off")
    lock = Lock(path)
    try:
        assert not lock.acquire()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert taken_within(lock, 0.5) is not handed_on
    finally:
        os.kill(int(child), signal.SIGKILL)
    assert handed_on is False or taken_within(lock, 5)
    lock.release()


def test_waiting_for_it(tmp_path, start):
    path = tmp_path / ".lock"
    process, _ = start(HOLD.replace("time.sleep(60)", "time.sleep(0.3)"), path)
    with Lock(path) as lock:
        assert process.wait() == 0
        assert not Lock(path).acquire()
        assert lock.fileno() > 2
    assert Lock(path).acquire()


def test_letting_go_of_what_one_does_not_have_changes_nothing(tmp_path):
    path = tmp_path / ".lock"
    first, second = Lock(path), Lock(path)
    assert first.acquire()
    assert not second.acquire()
    second.release()
    assert not second.acquire()
    first.release()
    assert second.acquire()
