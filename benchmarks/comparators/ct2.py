"""CTranslate2 on the T5 of `benchmarks.comparators.hf`: beam search in C++, with no constraint.

CTranslate2 has no callback for allowed tokens, so its results need not be live SIDs; its time is what a fast
engine for general encoder-decoders takes for the same number of beams and tokens.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from benchmarks.comparators import require
from benchmarks.comparators.hf import BOS, EOS, PAD, T5Shape, build_t5, token_offsets


class Ct2Generate:
    """The same weights as `HfGenerate` with the same shape."""

    def __init__(
        self,
        level_sizes: tuple[int, ...],
        *,
        compute_type: Literal["float32", "int8"] = "float32",
        shape: T5Shape,
        threads: int = 2,
    ) -> None:
        """Build the T5 and convert it.

        Args:
            level_sizes: V_1 .. V_T.
            compute_type: of the matrix products; "int8" quantizes weights and activations.
            shape: of the T5.
            threads: of one request.

        Raises:
            MissingComparatorError: ctranslate2 or transformers is not installed.
        """
        ctranslate2 = require("ctranslate2")
        model = build_t5(level_sizes, shape)
        self._offsets = token_offsets(level_sizes)
        # CTranslate2 takes and returns tokens as strings.
        self._names = ["<pad>", "</s>", "<s>", *map(str, range(sum(level_sizes)))]
        self._tokens = {name: token for token, name in enumerate(self._names)}
        require("transformers").utils.logging.disable_progress_bar()  # of saving and loading a tiny model
        with TemporaryDirectory() as folder:
            source, target = Path(folder, "t5"), Path(folder, "ct2")
            self._save(model, source)
            ctranslate2.converters.TransformersConverter(str(source)).convert(str(target))
            self._translator = ctranslate2.Translator(
                str(target),
                device="cpu",
                compute_type=compute_type,
                inter_threads=1,
                intra_threads=threads,
            )

    def generate(self, context: np.ndarray, beams: int) -> tuple[np.ndarray, np.ndarray]:
        """Beam search of exactly T tokens, unconstrained.

        Args:
            context: int64 [S] tokens, see `benchmarks.comparators.hf.random_context`.
            beams: width of every level, and results asked for.

        Returns:
            sids int32 [beams, T], best first; they need not exist, and a code lies outside its level where
            the token belongs to another one. Scores float32 [beams]: sums of log-probabilities.

        Raises:
            RuntimeError: a result does not have T tokens.
        """
        levels = len(self._offsets)
        (result,) = self._translator.translate_batch(
            [[self._names[token] for token in context]],
            beam_size=beams,
            num_hypotheses=beams,
            min_decoding_length=levels,  # no end of sequence before
            max_decoding_length=levels,
            length_penalty=0.0,
            return_scores=True,
        )
        lengths = {len(hypothesis) for hypothesis in result.hypotheses}
        if lengths != {levels} or len(result.hypotheses) != beams:
            raise RuntimeError(
                f"CTranslate2: expected {beams} results of {levels} tokens, got {len(result.hypotheses)} "
                f"of {sorted(lengths)}"
            )
        tokens = np.array([[self._tokens[name] for name in h] for h in result.hypotheses])  # [beams, T]
        return (tokens - self._offsets).astype(np.int32), np.array(result.scores, np.float32)

    def _save(self, model: Any, folder: Path) -> None:
        """Write the folder that the converter reads; of a tokenizer it wants the list of all tokens."""
        model.save_pretrained(folder)
        tokenizers, transformers = require("tokenizers"), require("transformers")
        words = tokenizers.models.WordLevel(self._tokens, unk_token=self._names[PAD])
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(words),
            pad_token=self._names[PAD],
            unk_token=self._names[PAD],
            eos_token=self._names[EOS],
            bos_token=self._names[BOS],
        ).save_pretrained(folder)
