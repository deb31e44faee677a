"""Ready rules: other ways for cotangents to cross a node.

A rule is a function `(local, out_cts) -> in_cts`. Give it to `backprop`, `value_and_grad` or `grad` with the
nodes it is for: `rules=[("tanh", jaxprop.rules.clip(max_norm=1.0))]`.
"""

from ._basic import clip as clip
from ._basic import reverse as reverse
from ._basic import scale as scale
from ._basic import stop as stop
from ._basic import straight_through as straight_through
