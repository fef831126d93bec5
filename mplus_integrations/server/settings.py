"""Settings of the server: by flags, environment variables (``MPLUS_SERVE_…``) and a TOML file, in this order."""

import os
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from mplus import MemoryStore, UnknownNameError
from mplus.given import LocalPath

PREFIX = "MPLUS_SERVE_"
Names = Annotated[tuple[str, ...], NoDecode]
"""Several texts; in an environment variable they are separated by commas."""


class ServeSettings(BaseSettings):
    """How ``mplus serve`` serves. The docstring of a field is the help of its flag.

    Raises:
        ValueError: A setting is unknown or out of range.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    model: str = "smol-135m"
    """Built-in name, local folder or hub repository."""
    device: str = "auto"
    """Where the model runs: auto, cpu, cuda, cuda:1."""
    dtype: str = "auto"
    """Of the weights: auto (for most models float32 on a CPU), float32, bfloat16, or int8, quickest on many CPUs."""
    aliases: Names = ()
    """Further names by which clients may call the model, separated by commas."""
    memories: LocalPath | None = None
    """Folder of the memories; by default that of the other mplus commands. With --memories-url, a folder of copies of
    that url and nothing else; by default one of its own."""
    memories_url: str | None = None
    """Url of the memories, such as s3://bucket/memories, which many machines share; a folder holds copies."""
    max_local_bytes: Annotated[int, Field(ge=0)] | None = None
    """Most bytes of copies of memories behind a url; no limit by default."""
    vault: LocalPath | None = None
    """Folder of a key for each memory, with which it is encrypted; by default memories are not encrypted."""
    shared: Names = ()
    """Memories that every answer reads beside the caller's own, separated by commas; those missing are made."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 chooses a free one."""
    keys: LocalPath | None = None
    """File of the keys that mplus keys makes; only those are let in."""
    require_key: bool | None = None
    """Whether each request needs an API key. By default it does where keys are given, and where other machines can
    reach the host. Without a file of keys any key is let in, to a memory of its own."""
    origins: Names = ()
    """Web pages of these origins may call, such as https://chat.example.com; by default none of another origin."""
    hosts: Names = ()
    """Names by which this server is called, such as memory.example.com. On this machine alone: localhost."""

    max_tokens: Annotated[int, Field(ge=1)] = 512
    """Most tokens of an answer that does not say."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds after which an answer is cut off."""
    max_running: Annotated[int, Field(ge=1)] = 16
    """Most answers that are made at the same time."""
    max_waiting: Annotated[int, Field(ge=0)] = 256
    """Most requests that wait; further ones are told to try again later (429)."""
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Most requests of one caller in a minute; no limit by default."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 16 * 2**20
    """Most bytes of a request."""
    max_import_bytes: Annotated[int, Field(ge=1)] = 4 * 2**30
    """Most bytes of an imported memory."""
    max_memory_bytes: Annotated[int, Field(ge=0)] | None = None
    """Most bytes of one memory; no limit by default."""
    max_total_bytes: Annotated[int, Field(ge=0)] | None = None
    """Most bytes of all memories; no limit by default."""

    ray: bool = False
    """Whether replicas of the model answer, each in a process of its own, as a Ray Serve application (extra cluster).
    """
    replicas: Annotated[int, Field(ge=1)] = 1
    """Copies of the model with --ray."""
    max_replicas: Annotated[int, Field(ge=1)] | None = None
    """Most copies of the model with --ray, if many ask at the same time; by default as many as replicas says."""
    grow_seconds: Annotated[float, Field(ge=0)] = 30.0
    """Seconds of more than max_running requests for each copy after which another is started, up to max_replicas."""
    shrink_seconds: Annotated[float, Field(ge=0)] = 600.0
    """Seconds of fewer after which a copy is ended, down to replicas."""
    replica_cpus: Annotated[float, Field(gt=0)] = 1.0
    """CPU cores of each replica."""
    replica_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of each replica; 0.5 lets two share one."""

    shutdown_seconds: Annotated[int, Field(ge=0)] = 30
    """Seconds that running answers have to end when the server stops."""
    page: bool = True
    """Whether a page to look into memories stands at /."""
    metrics: bool = True
    """Whether Prometheus metrics stand at /metrics."""
    log: Literal["json", "text"] = "json"
    """Form of the log lines: json or text. Contents and names of memories are never in them."""
    telemetry_contents: bool = False
    """Whether OpenTelemetry spans hold questions, answers and names of memories."""

    @field_validator("aliases", "shared", "origins", "hosts", mode="before")
    @classmethod
    def _one_text(cls, given: Any) -> Any:
        return tuple(filter(None, map(str.strip, given.split(",")))) if isinstance(given, str) else given

    @field_validator("shared")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(MemoryStore.check_name(name, "shared=") for name in names)

    @field_validator("origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if not parts.scheme or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}".lower():
                raise ValueError(
                    f"{origin!r:.80}: expected an origin as browsers send it: scheme, '://' and host in small letters, "
                    "and the port if it is not the scheme's own, such as https://chat.example.com."
                )
        return origins

    @model_validator(mode="after")
    def _keys_are_needed(self) -> Self:
        if self.keys is not None and self.require_key is False:
            raise ValueError("require_key=False beside keys: without keys anyone opens every memory. Leave one out.")
        return self

    @model_validator(mode="after")
    def _url_fits(self) -> Self:
        if self.memories_url is None and self.max_local_bytes is not None:
            raise ValueError("max_local_bytes without memories_url: there are no copies. Leave it out.")
        if self.memories_url is not None and self.max_total_bytes is not None:
            raise ValueError("max_total_bytes with memories_url: machines do not count together. Leave it out.")
        return self

    @model_validator(mode="after")
    def _replicas_fit(self) -> Self:
        if not self.ray and (self.replicas > 1 or self.max_replicas is not None):
            raise ValueError("replicas without ray: one process has one model. Add ray=True (--ray).")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas={self.max_replicas}: expected replicas={self.replicas} or more.")
        return self

    @property
    def needs_key(self) -> bool:
        """Whether each request needs an API key."""
        if self.require_key is not None:
            return self.require_key
        return self.keys is not None or not self.is_local

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the host."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def max_inside(self) -> int:
        """Most requests that are answered or wait at the same time."""
        return self.max_running + self.max_waiting

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags before the environment, the environment before the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def read_settings(given: Mapping[str, Any], file: Path | None = None) -> ServeSettings:
    """Settings from flags, the environment and a file.

    Args:
        given: What was given by flags.
        file: A TOML file of settings by name.

    Raises:
        ValueError: What is wrong with the first setting that is.
        FileNotFoundError: There is no such file.
    """
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"--config {file}: there is no such file.")
    known = {PREFIX + name.upper() for name in ServeSettings.model_fields}
    UnknownNameError.check((name for name in os.environ if name.startswith(PREFIX)), known, of="The environment")

    class FromFile(ServeSettings):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        return FromFile(**given)
    except ValidationError as error:
        raise ValueError(_told(error, file)) from error


def _told(error: ValidationError, file: Path | None) -> str:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        try:
            UnknownNameError.check([name], ServeSettings.model_fields, of=str(file))
        except UnknownNameError as unknown:
            return str(unknown)
    message = first["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message
