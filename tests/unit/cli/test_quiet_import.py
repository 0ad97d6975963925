"""What the import of TensorFlow prints on the command line."""

import subprocess
import sys

import pytest

NOISE = "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR"


def imported(folder, body, program="import resrep_dist.cli.quiet_import as q; q.quiet_tensorflow(); import tensorflow"):
    """Import a package named tensorflow that prints lines as the library does, past sys.stderr."""
    (folder / "tensorflow").mkdir()
    (folder / "tensorflow" / "__init__.py").write_text(f"import os\n{body}")
    program = f"import sys; sys.path.insert(0, {str(folder)!r})\n{program}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def test_known_lines_go_and_all_others_stay(tmp_path):
    body = f"os.write(2, b'first\\n{NOISE}\\nI0000 port.cc:153] oneDNN custom operations are on. You\\nlast')"
    result = imported(tmp_path, body)
    assert result.returncode == 0
    assert result.stderr == "first\nlast"


def test_lines_after_the_import_are_not_touched(tmp_path):
    program = "import resrep_dist.cli.quiet_import as q; q.quiet_tensorflow(); import tensorflow, os\n"
    result = imported(tmp_path, "", program + f"os.write(2, b'{NOISE}')")
    assert result.stderr == NOISE


def test_an_error_of_the_import_is_raised(tmp_path):
    result = imported(tmp_path, "raise ImportError('a broken library')")
    assert result.returncode == 1 and "ImportError: a broken library" in result.stderr


def test_the_last_words_of_a_crash_are_seen(tmp_path):
    result = imported(tmp_path, f"os.write(2, b'{NOISE}\\nthe CPU has no AVX\\n'); os.abort()")
    assert result.returncode < 0
    assert result.stderr == "the CPU has no AVX\n"


@pytest.mark.parametrize("is_there", [True, False])
def test_without_sed_the_import_works(tmp_path, monkeypatch, is_there):
    if not is_there:
        monkeypatch.setenv("PATH", str(tmp_path))
    result = imported(tmp_path, f"os.write(2, b'{NOISE}\\n')")
    assert result.returncode == 0
    assert result.stderr == ("" if is_there else NOISE + "\n")
