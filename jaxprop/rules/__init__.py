"""Ready rules: other ways for cotangents to cross a node.

A rule is a function `(local, out_cts) -> in_cts`. Give it to `backprop`, `value_and_grad` or `grad` with the
nodes it is for: `rules=[("tanh", jaxprop.rules.clip(max_norm=1.0))]`.
"""

from .basic import clip as clip
from .basic import reverse as reverse
from .basic import scale as scale
from .basic import stop as stop
from .basic import straight_through as straight_through
