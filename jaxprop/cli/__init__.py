"""The command line: `jaxprop COMMAND FILE.py:FUNCTION ARGUMENTS`."""

from ._main import main as main
