"""The public names of the cluster; ``__init__.py`` reads this file."""

from .application import application as application
from .application import build as build
from .owners import owner as owner
from .sizing import Demand as Demand
from .sizing import Measured as Measured
from .sizing import needed as needed
