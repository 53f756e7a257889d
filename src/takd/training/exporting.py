"""The folder of a trained model: its weights, and files that say what it was trained and is evaluated with."""

import copy
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

from takd.models import DROPOUT_KEYS, load_tokenizer
from takd.sampling import Decoding
from takd.vocabulary import first_difference, save_tokenizer

# what `config.json` may say of the source's own decoding, files and code
OF_THE_SOURCE = ("task_specific_params", "prefix", "decoder_start_token_id", "auto_map")
# families that make a row of their table of positions zero, by the pad token's number
PAD_IN_POSITIONS = ("xglm",)


@dataclass(frozen=True)
class Exported:
    """What is written beside the weights of a model.

    Attributes:
        config: that of the source, with the token ids of the experiment's tokenizer. Where a family needs a number for
            a token that the tokenizer does not have, it is that of the end token.
        generation: how `generate` and `pipeline` decode by default: greedily, as the evaluation does without sampling.
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
        """Describe a model that was read from the folder `source`.

        Args:
            vocabulary: entries that the tokenizer uses. Training leaves those above as they were, and no evaluation
                draws one, so `generate` must not either.
            decoding: its `max_new_tokens` and `no_repeat_ngram` hold for greedy decoding, too.
        """
        tokens = {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        head = model.get_output_embeddings().weight
        tied = head is model.get_input_embeddings().weight
        config = copy.deepcopy(model.config)
        before = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        for part, part_before in _parts(config, before):
            for key in OF_THE_SOURCE:
                if hasattr(part, key):
                    delattr(part, key)
            for key in DROPOUT_KEYS:
                if hasattr(part_before, key):
                    setattr(part, key, getattr(part_before, key))
            part.tie_word_embeddings = tied
            for key, token in tokens.items():
                if key == "pad_token_id" and part.model_type in PAD_IN_POSITIONS:
                    continue  # `generate` and `pipeline` take that of `generation`
                try:
                    setattr(part, key, token)
                except StrictDataclassFieldValidationError:  # CWM, for one, has to have each token
                    setattr(part, key, tokenizer.eos_token_id)
        generation = GenerationConfig(
            **tokens, do_sample=False, max_new_tokens=decoding.max_new_tokens
        )
        if decoding.no_repeat_ngram:
            generation.no_repeat_ngram_size = decoding.no_repeat_ngram
        if len(head) > vocabulary:
            generation.suppress_tokens = list(range(vocabulary, len(head)))
        return cls(config, generation, tokenizer)

    def misread(self) -> str | None:
        """How `AutoTokenizer` reads the tokenizer otherwise beside this configuration; None where it does not.

        For some types of models, transformers builds a tokenizer of its own from the vocabulary alone.
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
        """Write a folder that `from_pretrained` reads; `weights` are those of `model` without adapters."""
        model.generation_config = self.generation
        model.save_pretrained(folder, state_dict=weights)
        for part, _ in _parts(self.config, self.config):
            part.dtype = model.dtype
        self.config.save_pretrained(folder)
        self.generation.save_pretrained(folder)
        save_tokenizer(self.tokenizer, folder)


def _splitting(tokenizer: Any) -> list[bytes | None]:
    """What a tokenizer does to a text before it looks for tokens."""
    backend = tokenizer.backend_tokenizer
    parts = (backend.normalizer, backend.pre_tokenizer)
    return [None if part is None else part.__getstate__() for part in parts]


def _parts(
    config: PretrainedConfig, other: PretrainedConfig
) -> list[tuple[PretrainedConfig, PretrainedConfig]]:
    """Two configurations side by side, and those of their text models where these lie within."""
    whole, text = (config, other), (config.get_text_config(), other.get_text_config())
    return [whole] if text[0] is config else [whole, text]
