"""TF-IDF + SVD against the written formula."""

import math
from collections import Counter

import numpy as np

from training.tokenizer.config import TokenizerConfig
from training.tokenizer.embedders.tfidf_svd import TfidfSvd

TEXTS = ["milk milk bread", "milk tea", "bread tea salt", "salt milk 2", "tea tea tea", "bread 2 milk"]


def test_embedding_equals_plain_formula():
    config = TokenizerConfig(embedding_dim=3, ngram_max=1, min_df=1)
    embedder = TfidfSvd.fit(TEXTS, config)
    arrays, metadata = embedder.state()
    vocabulary = metadata["vocabulary"]
    assert set(vocabulary) == {"milk", "bread", "tea", "salt", "2"}
    for text, actual in zip(TEXTS, embedder.embed(TEXTS), strict=True):
        row = np.zeros(len(vocabulary))
        for word, count in Counter(text.split()).items():
            document_frequency = sum(word in other.split() for other in TEXTS)
            idf = math.log((1 + len(TEXTS)) / (1 + document_frequency)) + 1
            row[vocabulary[word]] = (1 + math.log(count)) * idf
        vector = arrays["components"].astype(float) @ (row / np.linalg.norm(row))
        np.testing.assert_allclose(actual, vector / np.linalg.norm(vector), atol=1e-6)
