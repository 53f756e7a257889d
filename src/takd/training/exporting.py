"""Folder of a trained model: weights, configuration, generation settings and tokenizer."""

import copy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import Tensor
from transformers import (
    AutoConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from takd.decoding.sampling import Decoding
from takd.models.causal_lm import dropout_settings, load_tokenizer
from takd.models.tokenizer_check import end_tokens, first_difference, save_tokenizer

# settings of `config.json` that refer to the source's own decoding, files or code
OF_THE_SOURCE = ("task_specific_params", "prefix", "decoder_start_token_id", "auto_map")
# families that make a row of their table of positions zero, by the pad token's number
PAD_IN_POSITIONS = ("xglm",)


@dataclass(frozen=True)
class Exported:
    """Files that are written beside the weights of a model.

    Attributes:
        config: the source's configuration, with the token ids of the experiment's tokenizer; the end
            token's where the family requires an id for a token that the tokenizer lacks.
        generation: defaults of `generate` and `pipeline`: greedy decoding.
    """

    config: PretrainedConfig
    generation: GenerationConfig
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        source: Path,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: int,
        decoding: Decoding,
    ) -> "Exported":
        """Describe a model that was loaded from the folder `source`.

        Args:
            vocabulary: entries that the tokenizer uses. Entries above are never trained or sampled
                here, so `generate` must not sample them either.
            decoding: source of `max_new_tokens` and `no_repeat_ngram`, which also apply to greedy
                decoding.
        """
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        tokens = {name: getattr(tokenizer, name) for name in names}
        head = model.get_output_embeddings().weight
        tied = head is model.get_input_embeddings().weight
        config = copy.deepcopy(model.config)
        before = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        pairs = zip(dropout_settings(config), dropout_settings(before), strict=True)
        for (part, key), (of_source, _) in pairs:
            setattr(part, key, getattr(of_source, key))
        for part in _parts(config):
            for key in OF_THE_SOURCE:
                if hasattr(part, key):
                    delattr(part, key)
            part.tie_word_embeddings = tied
            for key, token in tokens.items():
                if key == "pad_token_id" and part.model_type in PAD_IN_POSITIONS:
                    continue  # `generate` and `pipeline` take that of `generation`
                try:
                    setattr(part, key, token)
                except StrictDataclassFieldValidationError:  # CWM, for one, has to have each token
                    setattr(part, key, tokenizer.eos_token_id)
        ends = end_tokens(tokenizer)
        if len(ends) > 1:
            tokens["eos_token_id"] = list(ends)
        generation = GenerationConfig(
            **tokens, do_sample=False, max_new_tokens=decoding.max_new_tokens
        )
        if decoding.no_repeat_ngram:
            generation.no_repeat_ngram_size = decoding.no_repeat_ngram
        if len(head) > vocabulary:
            generation.suppress_tokens = list(range(vocabulary, len(head)))
        return cls(config, generation, tokenizer)

    def misread(self) -> str | None:
        """Describe how `AutoTokenizer` would misread the tokenizer here; None if it would not.

        For some model types, transformers builds a tokenizer from the vocabulary alone.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.config.save_pretrained(folder)
            save_tokenizer(self.tokenizer, Path(folder))
            again = load_tokenizer(Path(folder))
        if type(again) is type(self.tokenizer):
            return None
        if _splitting(again) != _splitting(self.tokenizer):
            return "text is normalised or cut into words in another way"
        return first_difference(again, self.tokenizer)

    def write(self, model: PreTrainedModel, weights: dict[str, Tensor], folder: Path) -> None:
        """Write a folder for `from_pretrained`; `weights` are those of `model` without adapters."""
        model.generation_config = self.generation
        # one file of any size, whose digest the manifest has: 13B in float32 would make two
        model.save_pretrained(folder, state_dict=weights, max_shard_size=sys.maxsize)
        for part in _parts(self.config):
            part.dtype = model.dtype
        self.config.save_pretrained(folder)
        self.generation.save_pretrained(folder)
        save_tokenizer(self.tokenizer, folder)


def _splitting(tokenizer: Any) -> list[bytes | None]:
    """Serialised normaliser and pre-tokenizer, which run before tokens are looked up."""
    backend = tokenizer.backend_tokenizer
    parts = (backend.normalizer, backend.pre_tokenizer)
    return [None if part is None else part.__getstate__() for part in parts]


def _parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    """A configuration and, if it contains one, its text configuration."""
    text = config.get_text_config()
    return [config] if text is config else [config, text]
