"""Small tokenizers in the style of chat-model families, each with its chat template."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

LETTERS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?#'\"()[]{}<>|/_-+=*&%\n"
)
# how Llama 3 cuts a text into words
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bytes(*special: AddedToken | str) -> Tokenizer:
    """Byte-level tokenizer like GPT-2's, with one merge over a blank and one over a line feed."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "Ġa", "ĊĊ", "in"])}
    merges = [("Ġ", "a"), ("Ċ", "Ċ"), ("i", "n")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def _pieces(begin: str, *special: AddedToken | str, plain: tuple[str, ...] = ()) -> Tokenizer:
    """SentencePiece-like tokenizer, without the part that treats blanks."""
    tokens = [
        "<unk>",
        *[f"<0x{byte:02X}>" for byte in range(256)],
        "▁",
        *LETTERS,
        "▁a",
        "in",
        "\n\n",
    ]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    merges = [("▁", "a"), ("i", "n"), ("\n", "\n")]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.add_special_tokens(["<unk>", begin, *special])
    tokenizer.add_tokens(list(plain))
    number = tokenizer.token_to_id(begin)
    tokenizer.post_processor = TemplateProcessing(
        single=[begin, "$A"], special_tokens=[(begin, number)]
    )
    return tokenizer


def chatml() -> tuple[Tokenizer, dict[str, str], str]:
    tokenizer = _bytes("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    template = (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
        " + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return tokenizer, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, template


def qwen() -> tuple[Tokenizer, dict[str, str], str]:
    """Qwen: a default system prompt, and added tokens for thoughts that are not special."""
    tokenizer, special, template = chatml()
    words = Qwen2Tokenizer().backend_tokenizer
    tokenizer.normalizer, tokenizer.pre_tokenizer = words.normalizer, words.pre_tokenizer
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    system = (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
        "{% endif %}"
    )
    return tokenizer, special, system + template


def qwen3() -> tuple[Tokenizer, dict[str, str], str]:
    """Qwen3: thoughts of earlier answers are left out, and `enable_thinking: false` begins an answer without one."""
    tokenizer, special, _ = qwen()
    tokenizer.add_tokens([AddedToken("</think>", special=False, normalized=False)])
    template = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query_index=messages|length - 1, multi_step_tool=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') }}
            {{- '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
    return tokenizer, special, template


def smollm2() -> tuple[Tokenizer, dict[str, str], str]:
    """SmolLM2: ChatML with a system prompt of its own where there is none."""
    tokenizer, special, template = chatml()
    system = (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM,"
        " trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    )
    return tokenizer, special, system + template


def llama2() -> tuple[Tokenizer, dict[str, str], str]:
    """Llama 2: [INST] is plain text, and every part between special tokens begins with a blank."""
    tokenizer = _pieces("<s>", "</s>")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    template = (
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' +"
        " message['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
        "{% endfor %}"
    )
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>"}, template


def mistral() -> tuple[Tokenizer, dict[str, str], str]:
    """Mistral: [INST] is a special token, and only the first part of a text begins with a blank."""
    tokenizer = _pieces("<s>", "</s>", "[INST]", "[/INST]")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    template = (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + '[/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' ' + message['content'] | trim + eos_token }}{% else %}"
        "{{ raise_exception('Only user and assistant roles!') }}{% endif %}{% endfor %}"
    )
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>"}, template


def llama3() -> tuple[Tokenizer, dict[str, str], str]:
    names = ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id")
    tokenizer = _bytes(*(f"<|{name}|>" for name in names))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    number = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = TemplateProcessing(
        single=["<|begin_of_text|>", "$A"], special_tokens=[("<|begin_of_text|>", number)]
    )
    template = (
        "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role']"
        " + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
        "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    )
    return tokenizer, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, template


def gemma() -> tuple[Tokenizer, dict[str, str], str]:
    """Gemma: line feeds are added tokens, too, and the assistant is called model."""
    tokenizer = _pieces("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", plain=("\n\n",))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    template = (
        "{{ bos_token }}{% for message in messages %}{% set role = message['role'] | replace('assistant', 'model') %}"
        "{% if role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
    )
    return tokenizer, {"bos_token": "<bos>", "eos_token": "<eos>"}, template


def phi3() -> tuple[Tokenizer, dict[str, str], str]:
    """Phi-3: special tokens that absorb the blanks after them."""
    swallowing = [AddedToken(f"<|{n}|>", rstrip=True) for n in ("user", "assistant", "end")]
    tokenizer = _bytes("<|endoftext|>", *swallowing)
    template = (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    )
    return tokenizer, {"eos_token": "<|endoftext|>"}, template


def zephyr() -> tuple[Tokenizer, dict[str, str], str]:
    """Zephyr: the tokenizer puts a begin token before texts, but the chat template does not."""
    tokenizer = _pieces("<s>", "</s>")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    template = (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>"}, template


CHATS: dict[str, Callable[[], tuple[Tokenizer, dict[str, str], str]]] = {
    chat.__name__: chat
    for chat in (chatml, qwen, qwen3, smollm2, llama2, mistral, llama3, gemma, phi3, zephyr)
}


def save_chat(name: str, folder: Path, **more: Any) -> PreTrainedTokenizerFast:
    """Write a tokenizer in the form in which its model is published; `more` may replace the chat template."""
    backend, special, template = CHATS[name]()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    fast.chat_template = more.pop("chat_template", template)
    fast.save_pretrained(folder)
    return fast
