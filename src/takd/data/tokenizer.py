"""Stage: write the one tokenizer for all models of an experiment, as a folder.

Inputs: none. Outputs: `tokenizer` (folder for `AutoTokenizer.from_pretrained`), `manifest`.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from takd.data import template as templates
from takd.data.chat import REMEDY, ChatError, ChatTemplate, of_tokenizer
from takd.data.made_tokenizers import MADE
from takd.data.template import CHAT, Template
from takd.data.tokenise import Encoder
from takd.models.tokenizer_check import (
    ALSO,
    ALSO_END,
    FILES,
    GENERATION,
    end_tokens,
    entries,
    save_tokenizer,
)
from takd.runtime import files
from takd.runtime.digests import file_digest
from takd.runtime.errors import InputError, hub_error, hub_fault, reason
from takd.runtime.files import read_json_object
from takd.runtime.stage import Stage

ASKED = (("Name it.", ""), ("Name it.", "a cat"), ("Zażółć", "日本\n"), ("(3 of)", "{x} <b>"))


def run(stage: Stage) -> None:
    """Load, make or train the tokenizer, write it, and describe it in the manifest.

    The manifest has `vocabulary` (the largest id + 1), `end` and `pad` (ids; without a pad token, `pad` is the end
    token, which is safe since masks use lengths), and `begin` (ids that the tokenizer puts before a text). If the
    template is "chat", the manifest has the tokenizer's own as `template`, with what the experiment says of it written
    in, and the token that ends an answer in it is the end token. Any other template of the experiment is written into
    the folder as `chat_template`.

    Where generation_config.json of the source, or of a model that is taken as it is (`given`), names other end tokens,
    as chat models do, a response ends at any of them, and the manifest has all as `ends`.

    Raises:
        InputError: a tokenizer that cannot be read, is empty, or has no end token or no fast implementation; a
            vocabulary other than declared; a training text too small for it; no chat template where one is required.
    """
    spec, folder = stage.spec, stage.temporary(stage.outputs["tokenizer"])
    made = next((make for kind, make in MADE.items() if kind in spec["source"]), None)
    facts = made(spec, folder) if made else _convert(spec, folder, stage.say)
    digest = folder_digest(folder)
    stage.commit(stage.outputs["tokenizer"])
    stage.write_manifest(
        stage.outputs["manifest"],
        known_by_content=("source", "given", "text", "template"),
        kind="tokenizer",
        sha256=digest,
        **facts,
    )
    stage.say(f"tokenizer: {facts['vocabulary']} tokens")


def _convert(spec: dict[str, Any], folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Convert a tokenizer of the Hub, a folder or a GGUF file to the format of a folder."""
    from transformers import AutoTokenizer

    source, template = spec["source"], spec.get("template")
    place, options = _place(source)
    name = source.get("gguf", place)
    for file in (*FILES, *ALSO):
        if "folder" in source and file.endswith(".json") and (Path(place) / file).exists():
            read_json_object(Path(place) / file, f"tokenizer {name}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
    except ImportError as error:
        package = error.name or "a package that transformers names in its message"
        raise InputError(f"tokenizer {name}: reading it needs {package}; install it.") from error
    except Exception as error:  # the Hub, parsers, tokenizers: no common base class
        if "hub" in source and hub_fault(source["revision"], error):
            raise hub_error(f"the tokenizer {name}", source["revision"], error) from error
        raise InputError(
            f"tokenizer {name} cannot be read ({reason(error)}); see that its name is right and its files are whole."
        ) from error
    if not tokenizer.is_fast:
        raise InputError(f"tokenizer {name} has no fast implementation (tokenizer.json).")
    plain = tokenizer("a", add_special_tokens=False).input_ids
    # transformers returns an empty tokenizer, without an error, if expected files are missing
    if not plain or str(tokenizer.decode(plain)).strip() != "a":
        raise InputError(
            f"tokenizer {name} is empty: it cannot encode the letter a; the folder has to hold tokenizer.json,"
            " or vocab.json and merges.txt beside a config.json with the model's type."
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"tokenizer {name} has no end-of-text token; name it as eos_token in tokenizer_config.json."
        )
    own = tokenizer.chat_template or ""
    marks = templates.marks(own if isinstance(own, str) else own.get("default", ""))
    chat = _chat(tokenizer, name, spec) if template == CHAT else None  # may choose the end token
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    vocabulary, declared = entries(tokenizer), source.get("vocabulary")
    if declared not in (None, vocabulary):
        raise InputError(
            f"tokenizer.vocabulary is {declared}, but the largest id of tokenizer {name} is {vocabulary - 1}, counted"
            f" from 0; set {vocabulary}, or leave it out where no model starts from scratch."
        )
    marked = tokenizer("a", add_special_tokens=True).input_ids
    starts = [i for i in range(len(marked)) if marked[i : i + len(plain)] == plain]
    if not starts:
        raise InputError(
            f"tokenizer {name} splits a text otherwise when it adds its special tokens; correct its tokenizer.json."
        )
    start = starts[0]
    facts = {
        "vocabulary": vocabulary,
        "end": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "begin": marked[:start],
    }
    if len(marked) > start + len(plain):
        _end_no_text(tokenizer, marked[:start])
    facts["chat_marks"] = marks
    if chat:
        facts["template"] = chat.facts()
    ends = _ends(source, place, options, f"tokenizer {name}", say)
    for model, of_model in spec.get("given", {}).items():
        what = f"model '{model}'"
        named = _ends(of_model, *_place(of_model), what, say)
        # a configuration that nobody wrote names ids of other vocabularies
        special = [end for end in named if end in tokenizer.added_tokens_decoder]
        for end in sorted({*named}.difference(special)):
            say(
                f"{what}: {GENERATION} names the end token {end}, which is no special token here and ends nothing"
            )
        ends += special
    others = [end for end in dict.fromkeys(ends) if end != tokenizer.eos_token_id]
    if others:
        tokenizer.init_kwargs[ALSO_END] = others
        facts["ends"] = end_tokens(tokenizer)
        said = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(facts["ends"])))
        say(f"tokenizer: a response ends at any of {said}")
    tokenizer.response_template = None  # parses the answers of its original model, not of ours
    if isinstance(template, dict):
        tokenizer.chat_template = None
    save_tokenizer(tokenizer, folder)
    if isinstance(template, dict):
        if not _carries(tokenizer, folder, facts, template):
            say(
                "tokenizer: apply_chat_template cannot give the prompts of data.template; it has no chat template"
            )
        save_tokenizer(tokenizer, folder)
    return facts


def _chat(tokenizer: Any, name: str, spec: dict[str, Any]) -> ChatTemplate:
    if not tokenizer.chat_template:
        raise InputError(
            f"tokenizer {name} has no chat template, for which data.template asks; {REMEDY}"
        )
    try:
        return of_tokenizer(tokenizer, spec.get("system"), spec.get("variables"))
    except ChatError as error:
        raise InputError(f"tokenizer {name}: its chat template {error}; {REMEDY}") from error


def _ends(
    source: dict[str, Any],
    place: str,
    options: dict[str, Any],
    what: str,
    say: Callable[[str], None],
) -> list[int]:
    """Return the end tokens that the generation settings beside a tokenizer or model name; none without settings."""
    from huggingface_hub import try_to_load_from_cache
    from transformers.utils.hub import cached_file

    if "gguf" in source:
        return []
    path = cached_file(
        *(place, GENERATION),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **options,
    )
    if path is None:
        if "hub" in source and not try_to_load_from_cache(place, GENERATION, **options):
            say(
                f"{what}: the hub did not say whether it has a {GENERATION}, which may name more end tokens"
            )
        return []
    found = read_json_object(Path(path), what).get("eos_token_id")
    ends = found if isinstance(found, list) else [found] * (found is not None)
    if not all(type(end) is int for end in ends):
        raise InputError(
            f"{what}: eos_token_id of {GENERATION} is {found!r}; it has to be an id or a list of ids."
        )
    return list(dict.fromkeys(ends))


def _end_no_text(tokenizer: Any, begin: list[int]) -> None:
    """Configure a tokenizer to append nothing to a text, since a prompt is continued, as in training."""
    from tokenizers.processors import TemplateProcessing

    tokens = tokenizer.convert_ids_to_tokens(begin)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*tokens, "$A"],
        pair=[*tokens, "$A", "$B"],
        special_tokens=list(zip(tokens, begin, strict=True)),
    )
    for settings in (tokenizer.init_kwargs, vars(tokenizer)):
        for key in ("add_eos_token", "_add_eos_token"):
            if key in settings:
                settings[key] = False


def _carries(tokenizer: Any, folder: Path, facts: dict[str, Any], template: Template) -> bool:
    """Set the template as the tokenizer's chat template if it reproduces the prompts of the data stage."""
    encoder = Encoder(folder / "tokenizer.json", facts, template)
    wanted = encoder.prompts([encoder.fill(*asked) for asked in ASKED])
    begin = "".join(tokenizer.convert_ids_to_tokens(facts["begin"]))
    # some tokenizers put a blank before a text, but not after a preceding token
    for start in (begin, f"{begin} "):
        tokenizer.chat_template = templates.as_chat_template(template, start)
        messages = [[{"role": "user", "content": text, "input": more}] for text, more in ASKED]
        if tokenizer.apply_chat_template(messages, return_dict=False) == wanted:
            return True
    tokenizer.chat_template = None
    return False


def _place(source: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Arguments for `from_pretrained`: a name on the Hub or a folder, and options."""
    if "hub" in source:
        return source["hub"], {"revision": source.get("revision")}
    files.check_unchanged(source)
    path = Path(source.get("folder") or source["gguf"])
    if not path.exists():
        raise InputError(f"tokenizer {path}: no such file or folder.")
    if "gguf" in source:
        return str(path.parent), {"gguf_file": path.name, "local_files_only": True}
    return str(path), {"local_files_only": True}


def folder_digest(folder: Path) -> str:
    """Return the sha256 over the names and contents of all files below a folder, in hexadecimal.

    Leaves out the timestamp file that Snakemake adds to an output folder after the job.
    """
    total = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.is_file())
    for path in sorted(path for path in files if path.name != ".snakemake_timestamp"):
        total.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\0".encode())
    return total.hexdigest()
