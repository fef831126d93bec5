"""How bytes are kept: places, files, encryption, keys. Nothing here knows what a memory is."""
