"""Where a gradient goes wrong, why, and what to do. A report is data first, then text."""

from ._diagnose import diagnose as diagnose
from ._guard import explain_bad_step as explain_bad_step
from ._guard import load_reproduction as load_reproduction
from ._guard import save_reproduction as save_reproduction
from ._report import Finding as Finding
from ._report import Report as Report
