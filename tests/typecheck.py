"""The run-time type checker of the test run: an int is welcome where a float is."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
