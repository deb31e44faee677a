"""`python -m jaxprop.cli`."""

import sys

from .main import main

sys.exit(main())
