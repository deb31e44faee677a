"""Where a gradient goes wrong, why, and what to do. A report is data first, then text."""

from ._blocked import blocked as blocked
from ._chain import Loop as Loop
from ._check import assert_gradients as assert_gradients
from ._check import check as check
from ._compare import Comparison as Comparison
from ._compare import compare as compare
from ._diagnose import diagnose as diagnose
from ._flow import Flow as Flow
from ._flow import Level as Level
from ._flow import flow as flow
from ._guard import explain_bad_step as explain_bad_step
from ._guard import load_reproduction as load_reproduction
from ._guard import save_reproduction as save_reproduction
from ._ledger import Ledger as Ledger
from ._ledger import Residual as Residual
from ._precision import Precision as Precision
from ._precision import precision as precision
from ._report import Finding as Finding
from ._report import Report as Report
from ._residuals import assert_residuals as assert_residuals
from ._residuals import residuals as residuals
from ._thresholds import Thresholds as Thresholds
