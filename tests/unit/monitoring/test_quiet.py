"""Known lines of libraries are removed from the standard error, and no others."""

import os

from resrep_dist.monitoring.quiet import without_lines


def test_a_known_line_goes_and_the_standard_error_is_as_before(capfd):
    with without_lines(["^INFO: Created"]):
        os.write(2, b"first\nINFO: Created a delegate\nlast\n")
    os.write(2, b"INFO: Created by somebody else\n")
    assert capfd.readouterr().err == "first\nlast\nINFO: Created by somebody else\n"
