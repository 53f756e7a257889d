"""What every stage imports and computes first, done once in the process that the tests' stages are forked from."""

import deepspeed  # noqa: F401  (Accelerate imports it when a model is saved)
import peft  # noqa: F401
from transformers import conversion_mapping
from transformers.models.gemma3 import modeling_gemma3  # noqa: F401
from transformers.models.gpt2 import modeling_gpt2  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401
from transformers.models.mistral import modeling_mistral  # noqa: F401
from transformers.models.opt import modeling_opt  # noqa: F401
from transformers.models.qwen2 import modeling_qwen2  # noqa: F401

import takd.evaluation.evaluate
import takd.evaluation.likelihoods
import takd.generation.generate
import takd.generation.join
import takd.generation.outputs
import takd.training.train  # noqa: F401  (before DeepSpeed, which it tells that there is no card)
from takd.provenance import code_digest

code_digest("takd.training.train")
conversion_mapping.get_checkpoint_conversion_mapping("gpt2")
