"""See it: formulas, explanations, pictures and pages of a `Graph` or a `Tape`. Nothing here runs a program."""

from ._explain import Explanation as Explanation
from ._explain import explain as explain
from ._formula import Formula as Formula
from ._formula import expression_of as expression_of
from ._formula import formula as formula
from ._formula import formulas_of as formulas_of
from ._quiz import Quiz as Quiz
from ._quiz import quiz as quiz
