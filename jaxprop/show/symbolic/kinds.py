"""What kind of map an operation is, in a word and in a sentence, where a formula would not say it."""

from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of map.

    Attributes:
        word: the kind, in a word.
        sentence: what becomes of the cotangent; `{d_of}` and `{wrt}` stand for the names.
    """

    word: str
    sentence: str


_READ = "each number of {d_of} is added back to the place of {wrt} it was read from"
_WINDOW = "each number of {d_of} goes to the window of {wrt} it was made from"
_BACK = "each number of {d_of} goes back to the place it came from"
_SOLVE = "{d_of} is taken through a linear solve with the transposed matrix"
_OWN = "{d_of} crosses by the rule the function brings along"

_KINDS = {
    "gather": Kind("gather", _READ),
    "dynamic_slice": Kind("slice", _READ),
    "scatter": Kind("scatter", _BACK),
    "sort": Kind("permutation", _BACK),
    "top_k": Kind("gather", _READ),
    "approx_top_k": Kind("gather", _READ),
    "select_and_gather_add": Kind("windowed reduction", _WINDOW),
    "select_and_scatter_add": Kind("windowed reduction", _WINDOW),
    "reduce_window": Kind("windowed reduction", _WINDOW),
    "reduce_window_sum": Kind("windowed reduction", _WINDOW),
    "reduce_window_max": Kind("windowed reduction", _WINDOW),
    "reduce_window_min": Kind("windowed reduction", _WINDOW),
    "conv_general_dilated": Kind(
        "convolution", "the transposed convolution: {d_of} is convolved with the other operand"
    ),
    "ragged_dot_general": Kind("contraction", "{d_of} is multiplied, group by group, with the other operand"),
    "fft": Kind("transform", "the transposed Fourier transform of {d_of}"),
    "triangular_solve": Kind("linear solve", _SOLVE),
    "custom_linear_solve": Kind("linear solve", _SOLVE),
    "tridiagonal_solve": Kind("linear solve", _SOLVE),
    "cholesky": Kind("factorization", _SOLVE),
    "lu": Kind("factorization", _SOLVE),
    "qr": Kind("factorization", _SOLVE),
    "eigh": Kind("factorization", "{d_of} is taken through the eigenvectors"),
    "eig": Kind("factorization", "{d_of} is taken through the eigenvectors"),
    "svd": Kind("factorization", "{d_of} is taken through the singular vectors"),
    "scan": Kind("loop", "the steps of the loop, last to first"),
    "while": Kind("loop", "a loop that cannot be walked back"),
    "cond": Kind("branch", "the branch that was taken"),
    "checkpoint": Kind("recomputed body", "the body is run again, then walked back"),
    "cumprod": Kind("cumulative", "{d_of} is summed over all results a number takes part in"),
    "cummax": Kind("cumulative", _BACK),
    "cummin": Kind("cumulative", _BACK),
    "cumlogsumexp": Kind("cumulative", "{d_of} is summed over all results a number takes part in"),
    "reduce_prod": Kind("reduction", "{d_of} times the product of all other numbers"),
    "dot_general": Kind("contraction", "{d_of} is multiplied with the other operand"),
    "reduce_sum": Kind("reduction", "{d_of} goes to every number that was summed"),
    "reduce_max": Kind("reduction", "{d_of} goes to the largest numbers, shared equally"),
    "reduce_min": Kind("reduction", "{d_of} goes to the smallest numbers, shared equally"),
    "broadcast_in_dim": Kind("broadcast", "{d_of} is summed over the copies"),
    "cumsum": Kind("cumulative", "a cumulative sum the other way round"),
    "pad": Kind("slice", _BACK),
    "slice": Kind("slice", _BACK),
    "split": Kind("slice", _BACK),
    "dynamic_update_slice": Kind("slice", _BACK),
    "concatenate": Kind("concatenation", _BACK),
    "convert_element_type": Kind("conversion", "{d_of} in the other type"),
}
_REARRANGED = dict.fromkeys(("transpose", "rev"), Kind("permutation", _BACK))
_RESHAPED = dict.fromkeys(("reshape", "squeeze", "expand_dims", "copy", "name"), Kind("reshape", _BACK))
_KINDS |= _REARRANGED | _RESHAPED

OWN = Kind("custom rule", _OWN)
OPAQUE = Kind("opaque", "{d_of} crosses by JAX's own derivative of the operation")
COMPOSITE = Kind("composite", "{d_of} is walked back through the operations between")


def kind_of(primitive: str) -> Kind:
    """The kind of map a primitive is."""
    if primitive.startswith("scatter"):
        return _KINDS["scatter"]
    return _KINDS.get(primitive, OPAQUE)


def word_of(kind: Kind, form: str) -> str:
    """The word for a derivative of this form."""
    if form == "local" and kind not in (COMPOSITE, OWN):
        return "elementwise"
    # A closed form that goes not number by number, of what has no kind: operands were broadcast.
    return "broadcast" if kind is OPAQUE and form == "vjp" else kind.word
