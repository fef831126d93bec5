"""Detects that another distribution named ``mplus`` has been installed over this package.

Ours is called ``mplus-memory``. Both install files into ``site-packages/mplus/``, so the later one overwrites files of
the earlier one.
"""

import os

FIX = "pip uninstall -y mplus && pip install --force-reinstall --no-deps mplus-memory"


def refuse_other_mplus() -> None:
    """Raise an error if the other distribution is in the same folder as this package.

    The folder is read directly, because ``importlib.metadata`` takes ten times as long to import as ``mplus``.

    Raises:
        ImportError: The other distribution is installed.
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
    except FileNotFoundError:  # partly uninstalled
        return False
