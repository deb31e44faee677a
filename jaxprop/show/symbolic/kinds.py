"""The kind of a map in a word and in a sentence, for operations without a formula."""

from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of map.

    Attributes:
        word: the kind, in a word.
        sentence: how the cotangent is propagated; `{d_of}` and `{wrt}` stand for the names.
    """

    word: str
    sentence: str


_READ = "the elements of {d_of} are added to the elements of {wrt} that were read"
_WINDOW = "each element of {d_of} is propagated to the window of {wrt} it was computed from"
_MOVED = "the elements of {d_of} are moved back to their places in {wrt}"
_ACCUMULATED = "each element of {wrt} receives {d_of} summed over the results it contributes to"
_SOLVE = "a linear solve with the transposed matrix is applied to {d_of}"
_FACTORS = "{d_of} is propagated through the factors of the matrix"

_KINDS = {
    "gather": Kind("gather", _READ),
    "dynamic_slice": Kind("slice", _READ),
    "scatter": Kind("scatter", _MOVED),
    "sort": Kind("permutation", _MOVED),
    "top_k": Kind("gather", _READ),
    "approx_top_k": Kind("gather", _READ),
    "select_and_gather_add": Kind("windowed reduction", _WINDOW),
    "select_and_scatter_add": Kind("windowed reduction", _WINDOW),
    "reduce_window": Kind("windowed reduction", _WINDOW),
    "reduce_window_sum": Kind("windowed reduction", _WINDOW),
    "reduce_window_max": Kind("windowed reduction", _WINDOW),
    "reduce_window_min": Kind("windowed reduction", _WINDOW),
    "conv_general_dilated": Kind("convolution", "a transposed convolution of {d_of} with the other operand"),
    "ragged_dot_general": Kind("contraction", "{d_of} is multiplied by the other operand, group by group"),
    "fft": Kind("transform", "the transposed Fourier transform of {d_of}"),
    "triangular_solve": Kind("linear solve", _SOLVE),
    "custom_linear_solve": Kind("linear solve", _SOLVE),
    "tridiagonal_solve": Kind("linear solve", _SOLVE),
    "cholesky": Kind("factorization", _FACTORS),
    "lu": Kind("factorization", _FACTORS),
    "qr": Kind("factorization", _FACTORS),
    "eigh": Kind("factorization", "{d_of} is propagated through the eigenvectors"),
    "eig": Kind("factorization", "{d_of} is propagated through the eigenvectors"),
    "svd": Kind("factorization", "{d_of} is propagated through the singular vectors"),
    "scan": Kind("loop", "the steps of the loop, from the last to the first"),
    "while": Kind("loop", "a loop without a reverse-mode derivative"),
    "cond": Kind("branch", "the branch that was taken"),
    "checkpoint": Kind("recomputed body", "the body is recomputed, then differentiated"),
    "cumprod": Kind("cumulative", _ACCUMULATED),
    "cummax": Kind("cumulative", _MOVED),
    "cummin": Kind("cumulative", _MOVED),
    "cumlogsumexp": Kind("cumulative", _ACCUMULATED),
    "reduce_prod": Kind("reduction", "{d_of} times the product of all other elements"),
    "dot_general": Kind("contraction", "{d_of} is multiplied by the other operand"),
    "reduce_sum": Kind("reduction", "{d_of} is broadcast to all elements of the sum"),
    "reduce_max": Kind("reduction", "{d_of} is propagated to the largest elements, in equal parts"),
    "reduce_min": Kind("reduction", "{d_of} is propagated to the smallest elements, in equal parts"),
    "broadcast_in_dim": Kind("broadcast", "{d_of} is summed over the copies"),
    "cumsum": Kind("cumulative", "the cumulative sum of {d_of} in the opposite direction"),
    "pad": Kind("slice", _MOVED),
    "slice": Kind("slice", _MOVED),
    "split": Kind("slice", _MOVED),
    "dynamic_update_slice": Kind("slice", _MOVED),
    "concatenate": Kind("concatenation", _MOVED),
    "convert_element_type": Kind("conversion", "{d_of} converted to the dtype of {wrt}"),
    **dict.fromkeys(("transpose", "rev"), Kind("permutation", _MOVED)),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims", "copy", "name"), Kind("reshape", _MOVED)),
}

OWN = Kind("custom rule", "{d_of} is propagated by the custom rule of the function")
OPAQUE = Kind("opaque", "{d_of} is propagated by JAX's own rule for the operation")
COMPOSITE = Kind("composite", "{d_of} is propagated through the operations in between")


def kind_of(primitive: str) -> Kind:
    """The kind of map a primitive is."""
    if primitive.startswith("scatter"):
        return _KINDS["scatter"]
    return _KINDS.get(primitive, OPAQUE)


def word_of(kind: Kind, form: str) -> str:
    """The word for a derivative of this form."""
    if form == "local" and kind not in (COMPOSITE, OWN):
        return "elementwise"
    # A primitive without a kind whose closed form is not elementwise: its operands were broadcast.
    return "broadcast" if kind is OPAQUE and form == "vjp" else kind.word
