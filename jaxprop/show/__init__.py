"""Formulas, explanations, pictures, pages and plots of a `Graph` or a `Tape`. Nothing here runs the program."""

from . import notebook as notebook
from .drawing.draw import Drawing as Drawing
from .drawing.draw import draw as draw
from .drawing.scene import Scene as Scene
from .explanation.explain import Explanation as Explanation
from .explanation.explain import explain as explain
from .explanation.quiz import Quiz as Quiz
from .explanation.quiz import quiz as quiz
from .explanation.story import Act as Act
from .explanation.story import Story as Story
from .explanation.story import StoryRow as StoryRow
from .plots import plot_gradient_flow as plot_gradient_flow
from .plots import plot_histogram as plot_histogram
from .plots import plot_history as plot_history
from .plots import plot_through_time as plot_through_time
from .symbolic.formula import Formula as Formula
from .symbolic.formula import expression_of as expression_of
from .symbolic.formula import formula as formula
from .symbolic.formula import formulas_of as formulas_of
from .symbolic.names import Spelled as Spelled
from .symbolic.reader import PRIMITIVES as PRIMITIVES
