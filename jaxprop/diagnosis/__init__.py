"""Where a gradient goes wrong, why, and what to do. A report is data first, then text."""

from ._blocked import blocked as blocked
from ._chain import Loop as Loop
from ._diagnose import diagnose as diagnose
from ._flow import Flow as Flow
from ._flow import Level as Level
from ._flow import flow as flow
from ._guard import explain_bad_step as explain_bad_step
from ._guard import load_reproduction as load_reproduction
from ._guard import save_reproduction as save_reproduction
from ._report import Finding as Finding
from ._report import Report as Report
from ._thresholds import Thresholds as Thresholds
