"""The public names of M+ and where each is defined. Nothing else lists them: ``__init__.py`` reads this file."""

from .checkpoint.catalog import pull as pull
from .confidence import Calibration as Calibration
from .confidence import Evidence as Evidence
from .confidence import fit_calibration as fit_calibration
from .config import MemoryConfig as MemoryConfig
from .errors import CheckpointError as CheckpointError
from .errors import CorruptMemoryError as CorruptMemoryError
from .errors import DownloadError as DownloadError
from .errors import LedgerMissingError as LedgerMissingError
from .errors import MemoryKeyError as MemoryKeyError
from .errors import MemoryLimitError as MemoryLimitError
from .errors import MemoryLockedError as MemoryLockedError
from .errors import MemoryMismatchError as MemoryMismatchError
from .errors import MemoryNotFoundError as MemoryNotFoundError
from .errors import MemorySaveError as MemorySaveError
from .errors import ModelNotFoundError as ModelNotFoundError
from .errors import MPlusError as MPlusError
from .errors import PromptTooLongError as PromptTooLongError
from .errors import QueueFullError as QueueFullError
from .errors import SchedulerClosedError as SchedulerClosedError
from .errors import UnknownNameError as UnknownNameError
from .errors import UnsupportedModelError as UnsupportedModelError
from .generation.constrain import Constraint as Constraint
from .generation.constrain import ToolCall as ToolCall
from .generation.constrain import parse_tool_calls as parse_tool_calls
from .generation.engine import Generation as Generation
from .generation.engine import RecalledSource as RecalledSource
from .generation.sampling import SamplingParams as SamplingParams
from .generation.scheduler import Scheduler as Scheduler
from .generation.streams import AsyncGenerationStream as AsyncGenerationStream
from .generation.streams import GenerationStream as GenerationStream
from .generation.where import FoundSource as FoundSource
from .memory.history import MemoryDiff as MemoryDiff
from .memory.history import Snapshot as Snapshot
from .memory.memory import Memory as Memory
from .memory.sources import Source as Source
from .memory.sources import SourceTokens as SourceTokens
from .memory.stats import MemoryStats as MemoryStats
from .memory.store import MemoryStore as MemoryStore
from .memory.store import StoredMemory as StoredMemory
from .model import MPlus as MPlus
from .storage.encryption import MemoryKey as MemoryKey
from .storage.vault import KeyVault as KeyVault
from .write.absorb import WriteReport as WriteReport

__version__: str
