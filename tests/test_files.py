"""A run directory belongs to one run at a time."""

import errno
import fcntl
import subprocess
import sys

import pytest

from fedsim.files import in_use


def test_a_directory_is_kept_for_one_run_at_a_time(tmp_path):
    with in_use(tmp_path / "run"):
        # a process that the run has started does not keep it
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        refused = pytest.raises(ValueError, match=r"run is in use by another run; give another directory")
        with refused, in_use(tmp_path / "run"):
            pass
        with in_use(tmp_path / "other"):
            pass
    with in_use(tmp_path / "run"):
        pass
    child.communicate(b"\n")


def test_what_killed_runs_left_half_written_goes_and_nothing_else(tmp_path):
    for name in (".checkpoint.safetensors.123.tmp", ".hidden", "metrics.jsonl"):
        (tmp_path / name).write_text("")
    with in_use(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".hidden", "metrics.jsonl"}


def test_where_the_file_system_has_no_locks_nobody_is_kept_out(tmp_path, monkeypatch):
    def refuse(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".metrics.csv.123.tmp").write_text("")
    with in_use(tmp_path), in_use(tmp_path):
        assert (tmp_path / ".metrics.csv.123.tmp").exists(), "another run may be writing it"


def test_a_second_run_in_the_same_directory_is_refused(fedsim, tmp_path):
    with in_use(tmp_path / "run"):
        second = fedsim("+experiment=debug")
    assert second.code == 1
    assert f"{tmp_path / 'run'} is in use by another run" in second.err
    first = fedsim("+experiment=debug", "server.num_rounds=1")
    assert first.code == 0, first.err
    with in_use(first.directory):
        resumed = fedsim("+experiment=debug", "server.num_rounds=2", f"checkpoint.resume={first.directory}")
    assert "is in use by another run" in resumed.err
    again = fedsim("+experiment=debug", "server.num_rounds=2", f"checkpoint.resume={first.directory}")
    assert again.code == 0, again.err
