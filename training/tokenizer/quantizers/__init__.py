"""Vector -> codes, coarse to fine.

Another quantizer joins by implementing `Quantizer`, taking a name here, and a graph in
`export/quantizer_graph.py`.
"""

from training.tokenizer.quantizers.balanced import Balanced
from training.tokenizer.quantizers.base import Quantizer
from training.tokenizer.quantizers.rq_kmeans import RqKmeans

QUANTIZERS: dict[str, type[Quantizer]] = {"rq_kmeans": RqKmeans, "balanced": Balanced}
