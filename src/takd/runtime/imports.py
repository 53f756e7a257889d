"""What a stage imports, which is most of the time of a small one."""

import gc
import importlib
import sys
from types import ModuleType
from typing import Any

MODELS = "models."  # the modules of models, as transformers names them


def hide(*libraries: str) -> None:
    """Make libraries appear as not installed in this process, unless they are imported already.

    Other libraries import them where they are installed, for parts that no stage uses: nltk imports scipy's statistics,
    transformers scipy's solvers for losses of object detection, accelerate DeepSpeed before it saves a model.
    """
    for name in libraries:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def quickly(module: str) -> ModuleType:
    """Import a module without garbage collection, which would search a million objects, none of them garbage.

    Later collections leave these objects out, too.
    """
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()


def scan_transformers_once() -> None:
    """Import transformers, and spare it a second scan of its two thousand files of models.

    It reads all of them to learn which module has which class, when it is imported and again with the first model.
    """
    import transformers
    from transformers.utils import import_utils

    scan = import_utils.define_import_structure
    file = f"{transformers.__path__[0]}/models/__init__.py"
    every = transformers._import_structure.items()
    found = {key[len(MODELS) :]: set(names) for key, names in every if key.startswith(MODELS)}

    def known(module_path: str, prefix: str | None = None) -> Any:
        return {frozenset(): found} if found and module_path == file else scan(module_path, prefix)

    import_utils.define_import_structure = known  # type: ignore[assignment]
