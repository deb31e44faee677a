"""Where a gradient goes wrong, why, and what to do. A report is data first, then text."""

from .checking.check import assert_gradients as assert_gradients
from .checking.check import check as check
from .comparison.compare import Comparison as Comparison
from .comparison.compare import compare as compare
from .comparison.precision import Precision as Precision
from .comparison.precision import precision as precision
from .diagnose import diagnose as diagnose
from .flow.flow import Flow as Flow
from .flow.flow import Level as Level
from .flow.flow import gradient_flow as gradient_flow
from .flow.loops import Loop as Loop
from .memory.ledger import Ledger as Ledger
from .memory.ledger import Residual as Residual
from .memory.residuals import assert_residuals as assert_residuals
from .memory.residuals import residuals as residuals
from .nonfinite.cause_table import DEFAULT_CAUSES as DEFAULT_CAUSES
from .nonfinite.causes import Cause as Cause
from .nonfinite.evidence import Evidence as Evidence
from .nonfinite.stable_forms import StableForm as StableForm
from .report import Finding as Finding
from .report import Report as Report
from .reproduction import explain_bad_step as explain_bad_step
from .reproduction import load_reproduction as load_reproduction
from .reproduction import save_reproduction as save_reproduction
from .thresholds import Thresholds as Thresholds
from .zero.blocked import blocked_gradients as blocked_gradients
