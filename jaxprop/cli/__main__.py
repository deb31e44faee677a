"""`python -m jaxprop.cli`."""

import sys

from ._main import main

sys.exit(main())
