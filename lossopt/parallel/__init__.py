"""Where arrays lie: meshes, shardings, and what moves old code to many devices."""

from lossopt import _missing as _missing
from lossopt._elementwise import elementwise as elementwise
from lossopt._mesh import mesh as mesh
from lossopt._on_mesh import gathered as gathered
from lossopt._shardings import shardings as shardings

__getattr__ = _missing.Missing(__name__)
