"""Ad -> vector.

The paper embeds ads with an instruction-tuned multimodal LLM and co-occurrence learning (GR4AD, arXiv
2602.22732, section on UA-SID); vectors of such a model are given. Another embedder joins by implementing
`Embedder` and taking a name here.
"""

from training.tokenizer.embedders.bag import Bag
from training.tokenizer.embedders.base import Embedder
from training.tokenizer.embedders.given_vectors import GivenVectors
from training.tokenizer.embedders.tfidf_svd import TfidfSvd

EMBEDDERS: dict[str, type[Embedder]] = {"bag": Bag, "tfidf_svd": TfidfSvd, "given": GivenVectors}
