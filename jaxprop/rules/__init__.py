"""Ready-made rules: other ways for cotangents to propagate through a node.

A rule is a function `(local, out_cts) -> in_cts` (`jaxprop.Rule`): given a node at a point and the cotangents
of its outputs, it returns one cotangent for each operand. The default rule is the chain rule,
`local.vjp(out_cts)`. Pass rules to `backprop`, `value_and_grad` or `grad` together with the nodes they apply
to: `rules=[("tanh", jaxprop.rules.clip(max_norm=1.0))]`.

Each function here returns a rule. The first four change `out_ct` and then apply the chain rule.

    function             formula                                        use
    -------------------  ---------------------------------------------  ------------------------------
    scale(k)             out_ct <- k * out_ct                           weight one branch of a model
    reverse(k)           out_ct <- -k * out_ct                          domain-adversarial training
    clip(max_norm=m)     out_ct <- out_ct * min(1, m / |out_ct|)        exploding gradients
    clip(max_value=m)    out_ct <- min(max(out_ct, -m), m)              outliers, elementwise
    stop()               in_ct = 0                                      block a path
    straight_through()   in_ct = out_ct                                 rounding, signs, quantization
"""

from .clipping import clip as clip
from .estimators import straight_through as straight_through
from .scaling import reverse as reverse
from .scaling import scale as scale
from .scaling import stop as stop

__all__ = ["clip", "reverse", "scale", "stop", "straight_through"]  # so that `help` lists them
