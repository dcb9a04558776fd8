"""Where arrays lie: meshes, shardings, and what moves old code to many devices."""

from lossopt import _missing as _missing
from lossopt._mesh import mesh as mesh
from lossopt._on_mesh import gathered as gathered
from lossopt._shardings import shardings as shardings
from lossopt.parallel._batches import pad_batch as pad_batch
from lossopt.parallel._pmap import replicate as replicate
from lossopt.parallel._pmap import split as split

__getattr__ = _missing.Missing(__name__)
