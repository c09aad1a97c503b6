"""Ad -> vector.

The paper embeds ads with an instruction-tuned multimodal LLM and co-occurrence learning (GR4AD, arXiv
2602.22732, section on UA-SID). Another embedder joins by implementing `TextEmbedder` and taking a name here.
"""

from training.tokenizer.embedders.base import TextEmbedder
from training.tokenizer.embedders.tfidf_svd import TfidfSvd

EMBEDDERS: dict[str, type[TextEmbedder]] = {"tfidf_svd": TfidfSvd}
