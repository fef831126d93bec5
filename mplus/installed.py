"""Whether this is the ``mplus`` that was installed last: the package index has another distribution of that name.

Ours is called ``mplus-memory``. Both install files into ``site-packages/mplus/``, so whichever comes last overwrites
the other's.
"""

import os

FIX = "pip uninstall -y mplus && pip install --force-reinstall --no-deps mplus-memory"


def refuse_other_mplus() -> None:
    """Do nothing, unless the other distribution lies in the same folder as this package.

    The folder is read directly: ``importlib.metadata`` takes ten times as long to import as ``mplus`` itself.

    Raises:
        ImportError: The other distribution is there.
    """
    folder = os.path.dirname(os.path.dirname(__file__))
    for name in os.listdir(folder):
        if name.startswith("mplus-") and name.endswith(".dist-info") and _owns_the_package(os.path.join(folder, name)):
            version = name.removeprefix("mplus-").removesuffix(".dist-info")
            raise ImportError(
                f"{folder} holds the distribution 'mplus' {version}, another project, which installs into the same "
                f"folder mplus/ as M+ (the distribution 'mplus-memory'): each overwrites files of the other. Keep one "
                f"of them. To keep M+: {FIX}"
            )


def _owns_the_package(dist_info: str) -> bool:
    try:
        with open(os.path.join(dist_info, "RECORD"), encoding="utf-8") as record:
            return any(line.startswith("mplus/__init__.py,") for line in record)
    except FileNotFoundError:  # half uninstalled
        return False
