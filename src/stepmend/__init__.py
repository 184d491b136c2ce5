"""stepmend finds the step at which a low-bit language model starts to reason wrongly, and mends the model there."""

from stepmend.recipe import Recipe as Recipe
from stepmend.records import Bullet as Bullet
from stepmend.records import Fault as Fault
from stepmend.records import Grade as Grade
from stepmend.records import InputError as InputError
from stepmend.records import Problem as Problem
from stepmend.records import Trace as Trace
from stepmend.records import Vote as Vote

__version__ = "0.1.0"
