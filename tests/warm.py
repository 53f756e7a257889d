"""Imports and first computations of stages, done once in the process that the tests' stages are forked from."""

import gc
import importlib
import os
import sys

from takd.methods.registry import METHODS
from takd.runtime import imports, stage
from takd.runtime.code_digest import code_digest

collecting = gc.isenabled()
gc.disable()
imports.scan_transformers_once()
os.fsync = lambda file: None  # as in conftest.py

FAMILIES = ("gemma3", "gpt2", "llama", "mistral", "opt", "qwen2")
TOKENIZERS = ("gemma", "gpt2", "llama", "qwen2")  # of these families

for name in (
    "takd.training.train",
    "takd.evaluation.evaluate",
    "takd.evaluation.likelihoods",
    "takd.teacher_cache.responses",
    "takd.teacher_cache.merge",
    "takd.teacher_cache.outputs",
    *(f"transformers.models.{family}.modeling_{family}" for family in FAMILIES),
    *(f"transformers.models.{family}.tokenization_{family}" for family in TOKENIZERS),
    "peft",
    "deepspeed",  # accelerate imports it when it saves a model
    "deepspeed.runtime.zero.muon.muon_optimizer",  # and with it a compiler, as any ZeRO stage does
    "loss_adaptive",  # a method defined by the tests
):
    importlib.import_module(name)

# an extension for the CPU, which takes a minute to compile and computes nothing otherwise
sys.modules["deepspeed.ops"].__compatible_ops__["deepspeed_shm_comm"] = False

for method in METHODS:
    importlib.import_module(f"takd.methods.{method}")
    code_digest("takd.training.train", f"takd.methods.{method}")
for name in stage.VERSIONED:
    stage._version(name)
importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("gpt2")

# A collection in a fork would search all these objects, and copy the pages that they lie on.
gc.freeze()
if collecting:
    gc.enable()
