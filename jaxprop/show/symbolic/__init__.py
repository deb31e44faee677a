"""Local gradients as formulas, and the expressions they are made of.

A reader of a primitive, `(operands, equation) -> expression`, is written with the functions named here: `apply`
for an elementwise function, `apply_array` for any other, and arithmetic that simplifies.
"""

from .arithmetic import add as add
from .arithmetic import apply as apply
from .arithmetic import broadcast as broadcast
from .arithmetic import compare as compare
from .arithmetic import divide as divide
from .arithmetic import multiply as multiply
from .arithmetic import negate as negate
from .arithmetic import power as power
from .arithmetic import raise_to as raise_to
from .arithmetic import subtract as subtract
from .arithmetic import where as where
from .arrays import apply_array as apply_array
from .arrays import flip as flip
from .arrays import reduce as reduce
from .arrays import reshape as reshape
from .arrays import slice_array as slice_array
from .contractions import einsum as einsum
from .contractions import transpose as transpose
from .expressions import Equation as Equation
from .expressions import Expr as Expr
from .expressions import PrimitiveReader as PrimitiveReader
from .expressions import Unreadable as Unreadable
from .expressions import num as num
from .formula import Formula as Formula
from .formula import expression_of as expression_of
from .formula import formula as formula
from .formula import formulas_of as formulas_of
from .reader import PRIMITIVES as PRIMITIVES
