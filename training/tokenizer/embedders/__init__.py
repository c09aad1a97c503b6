"""Ad -> vector.

The paper embeds ads with an instruction-tuned multimodal LLM and co-occurrence learning (GR4AD, arXiv
2602.22732, section on UA-SID); vectors of such a model are given. Another embedder joins by implementing
`Embedder` and taking a name here.
"""

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.embedders.bag import Bag
from training.tokenizer.embedders.base import Embedder
from training.tokenizer.embedders.given_vectors import GivenVectors
from training.tokenizer.embedders.joined import Joined
from training.tokenizer.embedders.tfidf_svd import TfidfSvd

EMBEDDERS: dict[str, type[Embedder]] = {
    "bag": Bag,
    "tfidf_svd": TfidfSvd,
    "minilm": Joined,
    "given": GivenVectors,
}


def embedder_of(config: TokenizerConfig) -> type[Embedder]:
    """The embedder that a config names; that of a list is the sum of its parts."""
    return EMBEDDERS[config.embedding] if isinstance(config.embedding, str) else Joined
