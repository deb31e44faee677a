"""The command line: `jaxprop COMMAND FILE.py:FUNCTION ARGUMENTS`."""

from .main import main as main
