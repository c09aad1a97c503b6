"""UA-SID: the text of an ad -> embedding -> residual codes plus one hash level."""

from training.tokenizer.config import TokenizerConfig
from training.tokenizer.quality import SidQuality, sid_quality
from training.tokenizer.storage import TokenizerError
from training.tokenizer.tokenizer import Tokenizer

__all__ = ["SidQuality", "Tokenizer", "TokenizerConfig", "TokenizerError", "sid_quality"]
