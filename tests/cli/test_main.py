"""The command line's entry: finding commands, exit statuses, one line for an error."""

from __future__ import annotations

import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest

from lcmem_filter.cli import main as entry
from lcmem_filter.errors import EmptyDataError


@pytest.fixture
def doing(monkeypatch):
    """Replaces the commands by one, ``act``, that calls a function."""

    def install(act):
        command = SimpleNamespace(
            NAME="act", HELP="Act", add_arguments=lambda parser: None, run=lambda args: act()
        )
        monkeypatch.setattr(entry, "commands", lambda: {"act": command})

    return install


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize("status", [0, 1])
def test_exit_status_is_the_commands_own(doing, status):
    doing(lambda: status)
    assert entry.main(["act"]) == status


@pytest.mark.parametrize(
    "error", [EmptyDataError("no images\nin here"), PermissionError(13, "denied", "here")]
)
def test_expected_error_is_one_line_on_stderr_and_exit_2(doing, capsys, error):
    doing(raising(error))
    assert entry.main(["act"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lcmem-filter: ") and err.count("\n") == 1 and "Traceback" not in err


def test_own_warnings_are_one_line_and_those_of_others_stay_as_they_are(doing):
    shown, said = warnings.formatwarning, []

    def act():
        for file in (entry.__file__, "/elsewhere/diffusers.py"):
            said.append(warnings.formatwarning(UserWarning("careful\nhere"), UserWarning, file, 7, ""))
        return 0

    doing(act)
    assert entry.main(["act"]) == 0 and warnings.formatwarning is shown
    assert said == [
        "lcmem-filter: careful here\n",
        "/elsewhere/diffusers.py:7: UserWarning: careful\nhere\n",
    ]


def test_an_output_that_is_a_file_is_told_what_to_do(tmp_path, doing, capsys):
    (tmp_path / "file").write_text("kept")
    for act in ((tmp_path / "file").mkdir, lambda: list((tmp_path / "file").iterdir())):
        doing(act)
        assert entry.main(["act"]) == 2
        assert capsys.readouterr().err.endswith("file'; give a folder, or a path where nothing lies\n")


def test_unexpected_error_shows_its_traceback_and_is_not_mistaken_for_matches_found(doing, capsys):
    doing(raising(RuntimeError("a defect")))
    assert entry.main(["act"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_is_130(doing, capsys):
    doing(raising(KeyboardInterrupt()))
    assert entry.main(["act"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_reader_that_goes_away_is_quiet():
    code = """
import sys
from types import SimpleNamespace
from lcmem_filter.cli import main as entry
def act(args):
    for _ in range(100_000):
        print("a line of data")
    return 0
command = SimpleNamespace(NAME="act", HELP="Act", add_arguments=lambda parser: None, run=act)
entry.commands = lambda: {"act": command}
sys.exit(entry.main(["act"]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 141
    assert err == b""


def test_an_option_that_is_given_twice_is_not_passed_over(capsys):
    with pytest.raises(SystemExit) as stop:
        entry.main(["train", "images", "--vae", "one", "--vae", "two", "--output", "head"])
    assert stop.value.code == 2
    assert "--vae is given twice, one and two; give one" in capsys.readouterr().err


def test_no_command_and_unknown_commands_exit_2(capsys):
    for arguments in ([], ["no-such-command"]):
        with pytest.raises(SystemExit) as stop:
            entry.main(arguments)
        assert stop.value.code == 2
    assert "usage: lcmem-filter" in capsys.readouterr().err
