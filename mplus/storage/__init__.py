"""Storage of bytes: places, files, encryption, keys. This package does not depend on ``mplus.memory``."""
