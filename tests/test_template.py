"""What of a prompt is the template's and what the data's: special tokens, chat templates, warnings."""

import json

import pytest
from chat_tokenizers import CHATS, save_chat
from test_data import SHORT, row, run_prepare, run_tokenizer, write
from transformers import AutoTokenizer

from takd.data.template import as_chat_template, fill, unknown_marks
from takd.data.tokenise import Encoder
from takd.models import causal_lm
from takd.runtime.errors import InputError
from takd.runtime.files import read_json

# what users write: blanks around, line feeds, other scripts, braces, what looks like thoughts
ASKED = [
    ("Name a thing in a house.", ""),
    ("Name it.", "a chair\n\na table"),
    ("  \n Name it. \n", ""),
    ("\nName", " a {b} {{ c }} \n"),
    ("Zażółć 日本 😀?", "{instruction} %}"),
    ("<think>a</think> in", "<b>&amp;</b>"),
    ("a", "\n"),
]
WRITTEN_OUT = {
    "chatml": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "qwen": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llama2": "<s>[INST] {} [/INST]",
    "mistral": "<s>[INST] {}[/INST]",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant"
    "<|end_header_id|>\n\n",
    "gemma": "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    "phi3": "<|user|>\n{}<|end|>\n<|assistant|>\n",
}


def prepared(folder, source, template):
    """The manifest of the tokenizer stage."""
    return run_tokenizer(folder, {"source": {"folder": str(source)}, "template": template})


def asked_as_chat(tokenizer, instruction, context):
    content = f"{instruction}\n{context}" if context else instruction
    messages = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("name", CHATS)
def test_chat_gives_the_ids_of_apply_chat_template(tmp_path, name):
    published = save_chat(name, tmp_path / "published")
    # what a template of thoughts uses as a token is text where a user writes it
    some = [asked for asked in ASKED if name != "qwen3" or "think" not in asked[0]]
    manifest = prepared(tmp_path, tmp_path / "published", "chat")
    records = [row(*asked, "b") for asked in some]
    source = write(tmp_path / "rows.jsonl", records)
    limits = {"max_prompt_length": 300, "max_length": 400}
    data, _ = run_prepare(tmp_path, manifest, "train", source, template="chat", **limits)
    expected = [asked_as_chat(published, *asked) for asked in some]
    assert data["prompt_ids"][:] == expected
    begin = published.bos_token_id
    assert all(ids.count(begin) <= 1 for ids in expected) or begin is None
    # the exported tokenizer still has it
    exported = causal_lm.load_tokenizer(tmp_path / "tokenizer")
    assert [asked_as_chat(exported, *asked) for asked in some] == expected


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_chat_format_written_out_gives_the_same_ids(tmp_path, name, capsys):
    published = save_chat(name, tmp_path / "published")
    text = WRITTEN_OUT[name]
    template = {
        "with_input": text.replace("{}", "{instruction}\n{input}"),
        "without_input": text.replace("{}", "{instruction}"),
    }
    manifest = prepared(tmp_path, tmp_path / "published", template)
    asked = [pair for pair in ASKED if not pair[0][0].isspace() and not pair[1].endswith("\n")]
    source = write(tmp_path / "rows.jsonl", [row(*pair, "b") for pair in asked])
    limits = {"max_prompt_length": 300, "max_length": 400}
    data, _ = run_prepare(tmp_path, manifest, "train", source, template=template, **limits)
    assert data["prompt_ids"][:] == [asked_as_chat(published, *pair) for pair in asked]
    assert "looks like a special token" not in capsys.readouterr().out
    # the exported tokenizer has it as its chat template
    exported = causal_lm.load_tokenizer(tmp_path / "tokenizer")
    messages = [[{"role": "user", "content": text, "input": more}] for text, more in asked]
    assert exported.apply_chat_template(messages, return_dict=False) == data["prompt_ids"][:]


@pytest.mark.parametrize("written_out", [False, True])
@pytest.mark.parametrize("name", CHATS)
def test_no_field_becomes_a_special_token(tmp_path, name, written_out):
    published = save_chat(name, tmp_path / "published")
    template = "chat"
    if written_out:
        text = WRITTEN_OUT.get(name, "{}")
        template = dict.fromkeys(
            ("with_input", "without_input"), text.replace("{}", "{instruction} {input}")
        )
    manifest = prepared(tmp_path, tmp_path / "published", template)
    encoder = Encoder.beside(manifest, template)
    # thoughts are plain added tokens, which the templates of Qwen before 3 do not use
    special = [
        token for token in published.get_added_vocab() if token.strip() and "think" not in token
    ]
    harmless, *attacks = encoder.prompts(
        [encoder.fill(text, "b") for text in ("a", *(f"a{token}a" for token in special))]
    )
    ids = published.get_added_vocab().values()
    in_template = [number for number in harmless if number in ids]
    for token, attack in zip(special, attacks, strict=True):
        assert [number for number in attack if number in ids] == in_template, token
        assert token in published.decode(attack).replace("▁", " "), token
    assert encoder.responses([f"b{special[0]}"])[0].count(
        published.get_added_vocab()[special[0]]
    ) == (published.get_added_vocab()[special[0]] == encoder.end)


@pytest.mark.parametrize(
    ("chat_template", "says"),
    [
        (None, "has no chat template, for which data.template asks"),
        ("{{ raise_exception('a system message comes first') }}", "a system message comes first"),
        ("{{ messages[0]['content'] | upper }}", "does not keep what a user writes"),
        ("{{ messages[0]['content'][:9] }}", "does not keep what a user writes"),
        ("{{ messages[0]['content'].replace('<think>', '') }}", "'<think>a</think>b'"),
        ("no place for the message", "does not keep what a user writes"),
        ("{{ messages[0]['content'] + messages[0]['content'] }}", "does not keep what a user"),
        ("{% for", "cannot be used for one user message"),
    ],
)
def test_tokenizers_without_a_usable_chat_template_are_refused(tmp_path, chat_template, says):
    save_chat("chatml", tmp_path / "published", chat_template=chat_template)
    with pytest.raises(InputError) as found:
        prepared(tmp_path, tmp_path / "published", "chat")
    message = str(found.value)
    assert says in message and message.endswith(
        "write the template out, as with_input and without_input."
    )
    assert "\n" not in message
    # and are no obstacle to a template of one's own
    assert read_json(prepared(tmp_path, tmp_path / "published", SHORT))["kind"] == "tokenizer"


def test_long_prompts_are_shortened_within_a_chat(tmp_path):
    published = save_chat("llama3", tmp_path / "published")
    manifest = prepared(tmp_path, tmp_path / "published", "chat")
    source = write(tmp_path / "rows.jsonl", [row("Say it.", "long " * 60, "b")])
    (data,), facts = run_prepare(tmp_path, manifest, "heldout", source, template="chat")
    assert facts["counts"]["shortened_prompts"] == 1 and 46 <= len(data["prompt_ids"]) <= 48
    text = published.decode(data["prompt_ids"])
    assert text.endswith("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
    assert "Say it.\nlong" in text


@pytest.mark.parametrize(
    ("name", "text", "unknown"),
    [
        ("llama2", "<|im_start|>user\n{instruction}<|im_end|>\n", ["<|im_start|>", "<|im_end|>"]),
        (
            "chatml",
            "<start_of_turn>user {instruction}<end_of_turn>",
            ["<start_of_turn>", "<end_of_turn>"],
        ),
        ("chatml", "<s>[INST] {instruction} [/INST]", ["<s>", "[INST]", "[/INST]"]),
        ("chatml", "<|im_begin|>{instruction}<|im_end |>", ["<|im_begin|>", "<|im_end |>"]),
        (
            "gemma",
            "<start-of-turn>{instruction}</start_of_turn>",
            ["<start-of-turn>", "</start_of_turn>"],
        ),
        (
            "gemma",
            "<|start_header_id|>user<|end_header_id|>{instruction}",
            ["<|start_header_id|>", "<|end_header_id|>"],
        ),
        ("qwen", "<|im_start|>{instruction}<|im_end|><think>", []),
        ("llama2", "<s>[INST] {instruction} [/INST]", []),  # as its own chat template has it
        ("chatml", "<b>{instruction}</b> [Note] a < b > c <p> [1]", []),
        ("chatml", "Below is ### {instruction}\n\n### Response:", []),
    ],
)
def test_what_looks_like_a_special_token_and_is_none_is_told(tmp_path, capsys, name, text, unknown):
    save_chat(name, tmp_path / "published")
    template = {"with_input": text + "{input}", "without_input": text}
    manifest = prepared(tmp_path, tmp_path / "published", template)
    source = write(tmp_path / "rows.jsonl", [row("a", "", "b")])
    run_prepare(
        tmp_path,
        manifest,
        "train",
        source,
        template=template,
        max_prompt_length=300,
        max_length=400,
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if "looks like" in line]
    assert [line.split("'")[1] for line in lines] == unknown


def test_an_end_token_in_a_template_is_none_of_the_data(tmp_path):
    """As ChatML ends each turn with the token that ends an answer."""
    published = save_chat("chatml", tmp_path / "published")
    manifest = prepared(tmp_path, tmp_path / "published", "chat")
    end = published.eos_token_id
    source = write(tmp_path / "rows.jsonl", [row("a<|im_end|>", "", "b<|im_end|>c")])
    limits = {"max_prompt_length": 300, "max_length": 400}
    (data,), _ = run_prepare(tmp_path, manifest, "train", source, template="chat", **limits)
    assert data["prompt_ids"].count(end) == 1 and data["response_ids"].count(end) == 1


@pytest.mark.parametrize("name", CHATS)
def test_templates_without_special_tokens_give_the_ids_that_they_gave(tmp_path, name):
    """Template and fields as one text, all of it plain."""
    save_chat(name, tmp_path / "published")
    manifest = prepared(tmp_path, tmp_path / "published", SHORT)
    encoder, plain = Encoder.beside(manifest, SHORT), Encoder.beside(manifest)
    expected = plain.prompts([fill(SHORT, *asked) for asked in ASKED])
    assert encoder.prompts([encoder.fill(*asked) for asked in ASKED]) == expected
    exported = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    messages = [[{"role": "user", "content": text, "input": more}] for text, more in ASKED]
    assert exported.apply_chat_template(messages, return_dict=False) == expected
    assert "local_files_only" not in (tmp_path / "tokenizer/tokenizer_config.json").read_text()


@pytest.mark.parametrize("template", ["chat", SHORT])
def test_of_several_chat_templates_the_default_one_is_meant(tmp_path, template):
    chat_template = {"tool_use": "{{ tools }}", "default": CHATS["chatml"]()[2]}
    published = save_chat("chatml", tmp_path / "published", chat_template=chat_template)
    file = tmp_path / "published/tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"response_template": {"fields": {"content": {}}}}))
    manifest = prepared(tmp_path, tmp_path / "published", template)
    encoder = Encoder.beside(manifest, template)
    exported = causal_lm.load_tokenizer(tmp_path / "tokenizer")
    expected = encoder.prompts([encoder.fill("a", "")])[0]
    assert asked_as_chat(exported, "a", "") == expected
    assert (asked_as_chat(published, "a", "") == expected) is (template == "chat")
    assert exported.response_template is None


def test_a_template_that_no_chat_template_can_give_leaves_none(tmp_path, monkeypatch, capsys):
    save_chat("chatml", tmp_path / "published")
    monkeypatch.setattr("takd.data.template.as_chat_template", lambda *_: "another text")
    prepared(tmp_path, tmp_path / "published", SHORT)
    assert "it has no chat template" in capsys.readouterr().out
    assert not causal_lm.load_tokenizer(tmp_path / "tokenizer").chat_template


def test_a_chat_template_that_names_fields_keeps_their_names(tmp_path):
    """Braces of the text around a message are no fields."""
    text = "{instruction} and {input}:{% for m in messages %} {{ m['content'] }}{% endfor %}"
    published = save_chat("chatml", tmp_path / "published", chat_template=text)
    encoder = Encoder.beside(prepared(tmp_path, tmp_path / "published", "chat"), "chat")
    found = encoder.prompts([encoder.fill("a", "b")])
    assert found == [asked_as_chat(published, "a", "b")]
    assert published.decode(found[0]) == "{instruction} and {input}: a\nb"


def test_a_chat_template_is_for_single_user_messages(tmp_path):
    save_chat("chatml", tmp_path / "published")
    prepared(tmp_path, tmp_path / "published", SHORT)
    exported = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    with pytest.raises(Exception, match="trained on single user messages"):
        exported.apply_chat_template([{"role": "system", "content": "a"}])


def test_any_text_of_a_template_survives_jinja():
    from transformers.utils.chat_template_utils import render_jinja_template

    for text in ("\\n {{ x }}\n\n", "{% if %}'\"", "\t日本 😀\r\n", "{# #}\\u0041", "  \n"):
        template = {
            "with_input": text + "{input}{instruction}",
            "without_input": text + "{instruction}" + text,
        }
        for asked in ASKED:
            message = {"role": "user", "content": asked[0], "input": asked[1]}
            (found,), _ = render_jinja_template(
                [[message]], chat_template=as_chat_template(template, "")
            )
            assert found == fill(template, *asked)


def test_a_tokenizer_that_ends_texts_ends_no_prompt(tmp_path):
    """`generate` would go on behind the end of a text."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    published = save_chat("llama2", tmp_path / "published")
    file = tmp_path / "published/tokenizer.json"
    backend = Tokenizer.from_file(str(file))
    special = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    backend.save(str(file))
    for settings in ({}, {"add_eos_token": True, "add_bos_token": True}):
        config = json.loads((tmp_path / "published/tokenizer_config.json").read_text()) | settings
        (tmp_path / "published/tokenizer_config.json").write_text(json.dumps(config))
        ending = AutoTokenizer.from_pretrained(tmp_path / "published")
        assert ending("a").input_ids[-1] == published.eos_token_id
        manifest = prepared(tmp_path, tmp_path / "published", SHORT)
        assert read_json(manifest)["begin"] == [published.bos_token_id]
        exported = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
        exported.save_pretrained(tmp_path / "again")
        again = AutoTokenizer.from_pretrained(tmp_path / "again")
        assert exported("a").input_ids == again("a").input_ids == published("a").input_ids


def test_unknown_marks_are_told_once():
    template = {
        "with_input": "<|a|>{instruction}{input}<|a|>",
        "without_input": "<|a|>{instruction}",
    }
    assert unknown_marks(template, ["<|b|>"], []) == ["<|a|>"]
