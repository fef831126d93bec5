"""The public names of the server; ``__init__.py`` reads this file."""

from .app import create_app as create_app
from .keys import KeyRing as KeyRing
from .mcp_tools import mcp_server as mcp_server
from .service import Service as Service
from .settings import ServeSettings as ServeSettings
