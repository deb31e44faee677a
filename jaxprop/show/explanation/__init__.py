"""Explanations of a tape in words and formulas, and exercises made from one."""

from .explain import Explanation as Explanation
from .explain import explain as explain
from .quiz import Quiz as Quiz
from .quiz import quiz as quiz
from .story import Act as Act
from .story import Story as Story
from .story import StoryRow as StoryRow
