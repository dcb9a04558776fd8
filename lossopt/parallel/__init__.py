"""Where arrays lie: meshes, shardings, and what moves old code to many devices."""

from lossopt import _missing as _missing
from lossopt._elementwise import elementwise as elementwise
from lossopt._guard import guard as guard
from lossopt._mesh import mesh as mesh
from lossopt._on_mesh import gathered as gathered
from lossopt._shardings import shardings as shardings
from lossopt.parallel._batches import global_batch as global_batch
from lossopt.parallel._batches import pad_batch as pad_batch
from lossopt.parallel._collectives import Collective as Collective
from lossopt.parallel._collectives import collectives as collectives
from lossopt.parallel._describe import describe as describe
from lossopt.parallel._initialize import initialize as initialize
from lossopt.parallel._plan import Plan as Plan
from lossopt.parallel._plan import plan as plan
from lossopt.parallel._pmap import replicate as replicate
from lossopt.parallel._pmap import split as split

__getattr__ = _missing.Missing(__name__)
