"""See it: formulas, explanations, pictures and pages of a `Graph` or a `Tape`. Nothing here runs a program."""

from ._draw import Drawing as Drawing
from ._draw import draw as draw
from ._explain import Explanation as Explanation
from ._explain import explain as explain
from ._formula import Formula as Formula
from ._formula import expression_of as expression_of
from ._formula import formula as formula
from ._formula import formulas_of as formulas_of
from ._notebook import hand_down as hand_down
from ._plots import plot_gradient_flow as plot_gradient_flow
from ._plots import plot_histogram as plot_histogram
from ._plots import plot_history as plot_history
from ._plots import plot_through_time as plot_through_time
from ._quiz import Quiz as Quiz
from ._quiz import quiz as quiz
from ._scene import Scene as Scene
