"""What a stage imports, which is most of the time of a small one."""

import gc
import importlib
import sys
from types import ModuleType
from typing import Any

MODELS = "models."  # the modules of models, as transformers names them


def hide(*libraries: str) -> None:
    """Make libraries seem not to be installed in this process, unless they are imported already.

    Others import them where they are installed, for parts that no stage uses: nltk all of scipy's statistics,
    transformers scipy's solvers for losses of object detection, accelerate DeepSpeed for each model that it saves.
    """
    for name in libraries:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def quickly(module: str) -> ModuleType:
    """Import a module without searches for garbage, now or later, among what that makes: none of it ever is."""
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()


def scan_transformers_once() -> None:
    """Import transformers, and spare it a second scan of its two thousand files of models.

    It looks up in them which module has which class, as it is imported and again with its first model.
    """
    import transformers
    from transformers.utils import import_utils

    scan, models = (
        import_utils.define_import_structure,
        f"{transformers.__path__[0]}/models/__init__.py",
    )

    def known(path: str, prefix: str | None = None) -> Any:
        if path != models:
            return scan(path, prefix)
        every = transformers._import_structure.items()
        return {frozenset(): {k[len(MODELS) :]: set(v) for k, v in every if k.startswith(MODELS)}}

    import_utils.define_import_structure = known  # type: ignore[assignment]
