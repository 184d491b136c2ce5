from stepmend.api import blame as blame
from stepmend.api import check as check
from stepmend.api import compare as compare
from stepmend.api import grade as grade
from stepmend.api import locate as locate
from stepmend.api import run as run
from stepmend.logs import Fields as Fields
from stepmend.progress import Update as Update
from stepmend.recipe import Recipe as Recipe
from stepmend.records import Bullet as Bullet
from stepmend.records import Fault as Fault
from stepmend.records import Grade as Grade
from stepmend.records import InputError as InputError
from stepmend.records import Problem as Problem
from stepmend.records import Trace as Trace
from stepmend.records import Vote as Vote
from stepmend.results import Check as Check
from stepmend.results import Comparison as Comparison
from stepmend.results import Grades as Grades
from stepmend.results import Located as Located
from stepmend.results import RunResult as RunResult

__version__: str
HOMES: dict[str, tuple[str, ...]]
PUBLIC: dict[str, str]
CALLED: tuple[str, ...]
