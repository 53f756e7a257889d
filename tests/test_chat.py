"""Conversations: which rows are read, the prompts and answers of chat templates, and what of them is learned."""

import json

import pytest
import torch
from chat_tokenizers import save_chat
from test_data import row, run_prepare, run_tokenizer, write
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from takd.data import sources, summary
from takd.data.chat import ChatTemplate, settled
from takd.data.row import Row
from takd.data.tokenise import Encoder
from takd.decoding.sampling import Decoding, Prompt, draw
from takd.experiment import specs
from takd.models import causal_lm
from takd.models.tokenizer_check import end_tokens
from takd.runtime.digests import file_digest
from takd.runtime.errors import InputError
from takd.runtime.files import read_json
from takd.runtime.stage import Stage

LONG = {"max_prompt_length": 900, "max_length": 1000}
# several scripts, blanks, braces, what looks like special tokens
TALK = [
    ("user", "Name a thing in a house."),
    ("assistant", "A chair."),
    ("user", "日本語で? <|im_end|>{x}"),
    ("assistant", "椅子 😀 です。"),
    ("user", "Zażółć\n\ngęślą?"),
    ("assistant", "कुर्सी, كرسي"),
]
# the published formats, written by hand: what precedes an answer, the answer, what follows its end token
BEGIN = {"llama3": "<|begin_of_text|>", "mistral": "<s>", "gemma": "<bos>"}
BEGIN["qwen"] = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
BEGIN["smollm2"] = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)
HEADS = "<|start_header_id|>{}<|end_header_id|>\n\n"
IM = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
ASKED = {
    "llama3": HEADS.format("user") + "{}<|eot_id|>" + HEADS.format("assistant"),
    "qwen": IM,
    "smollm2": IM,
    "mistral": "[INST] {}[/INST]",
    "gemma": "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
}
SAID = {
    "llama3": ("{}<|eot_id|>", ""),
    "qwen": ("{}<|im_end|>", "\n"),
    "smollm2": ("{}<|im_end|>", "\n"),
    "mistral": (" {}</s>", ""),
    "gemma": ("{}<end_of_turn>", "\n"),
}
FAMILIES = list(ASKED)


def as_messages(talk):
    return [{"role": role, "content": text} for role, text in talk]


def talk_row(talk, form="messages"):
    if form == "messages":
        return {"messages": as_messages(talk)}
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names[role], "value": text} for role, text in talk]}


def tokenizer_of(folder, name, **spec):
    """The published tokenizer, and the manifest of the tokenizer stage with `template: chat`."""
    published = save_chat(name, folder / "published", **spec.pop("published", {}))
    source = {"folder": str(folder / "published")}
    return published, run_tokenizer(folder, {"source": source, "template": "chat", **spec})


def prepared(folder, manifest, rows, split="train", **settings):
    source = write(folder / f"{split}.jsonl", rows)
    data, facts = run_prepare(
        folder, manifest, split, source, template="chat", **{**LONG, **settings}
    )
    return list(data), facts


def hand_made(name, tokenizer, talk):
    """Ids of a whole conversation and the mask of what is learned, from the format written by hand."""
    text, spans = BEGIN[name], []
    for (_, asked), (_, said) in zip(talk[::2], talk[1::2], strict=True):
        text += ASKED[name].format(asked)
        answer, after = SAID[name]
        spans.append((len(text), len(text) + len(answer.format(said))))
        text += answer.format(said) + after
    assert text == tokenizer.apply_chat_template(as_messages(talk), tokenize=False)
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    learned = [any(a <= begin < b for a, b in spans) for begin, _ in read["offset_mapping"]]
    return read["input_ids"], learned


def harmless(talk):
    """Without what a tokenizer would read as a special token when it reads the text as a whole."""
    return [(role, text.replace("<|im_end|>", "")) for role, text in talk]


ENDS = {"qwen": ["<|im_end|>", "<|endoftext|>"], "llama3": ["<|eot_id|>", "<|end_of_text|>"]}


@pytest.mark.parametrize("name", ENDS)
def test_a_response_ends_at_any_end_token_of_the_model_and_a_label_at_the_templates(tmp_path, name):
    published = save_chat(name, tmp_path / "published")
    ids = published.convert_tokens_to_ids(ENDS[name])
    assert published.unk_token_id not in ids
    spec = {"source": {"folder": str(tmp_path / "published")}, "template": "chat"}
    one = run_tokenizer(tmp_path / "one", spec)
    # as the files of chat models name them, in any order, or as one number
    for number, said in enumerate((ids[::-1], ids, ids[0], None)):
        file = tmp_path / "published/generation_config.json"
        file.write_text(json.dumps({"eos_token_id": said, "do_sample": True}))
        manifest = run_tokenizer(tmp_path / f"{number}", spec)
        tokenizer, facts = (
            causal_lm.load_tokenizer(manifest.parent / "tokenizer"),
            read_json(manifest),
        )
        several = isinstance(said, list)
        assert end_tokens(tokenizer) == (tuple(ids) if several else (ids[0],))
        assert facts.get("ends") == (ids if several else None)
        assert (facts["sha256"] == read_json(one)["sha256"]) == (not several)
        assert Encoder.beside(manifest, "chat").end == tokenizer.eos_token_id == ids[0]
        tokenizer.save_pretrained(tmp_path / "again")  # as beside a trained model
        assert end_tokens(causal_lm.load_tokenizer(tmp_path / "again")) == end_tokens(tokenizer)
    for wrong in ("<|im_end|>", [1, None], 0.5):
        file.write_text(json.dumps({"eos_token_id": wrong}))
        with pytest.raises(
            InputError, match=r"eos_token_id of generation_config\.json is .* id or"
        ):
            run_tokenizer(tmp_path / "wrong", spec)


def always(token, vocabulary):
    """A model that finds this token likeliest after any text."""
    config = GPT2Config(vocab_size=vocabulary, n_positions=16, n_embd=4, n_layer=1, n_head=1)
    model = GPT2LMHeadModel(config).eval()
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    torch.nn.init.ones_(model.transformer.ln_f.bias)
    torch.nn.init.ones_(model.transformer.wte.weight[token])
    return model


def test_a_response_ends_at_what_a_teacher_that_is_there_ends_its_own_with(tmp_path, capfd):
    """The tokenizer comes with a base model that names no more than its end token."""
    published = save_chat("llama3", tmp_path / "published")
    turn, text = published.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    spec = {"source": {"folder": str(tmp_path / "published")}, "template": "chat"}
    plain = run_tokenizer(tmp_path / "plain", spec)
    teacher = tmp_path / "teacher"
    always(text, len(published)).save_pretrained(teacher)
    file, ordinary = teacher / "generation_config.json", published("a", add_special_tokens=False)
    for said, ends in (
        ([turn, text], (turn, text)),
        (turn, (turn,)),
        (ordinary["input_ids"], (turn,)),
    ):
        file.write_text(json.dumps({"eos_token_id": said}))
        of_teacher = {"folder": str(teacher), "sha256": [[file.name, file_digest(file)]]}
        manifest = run_tokenizer(tmp_path / "found", {**spec, "given": {"big": of_teacher}})
        tokenizer = causal_lm.load_tokenizer(manifest.parent / "tokenizer")
        assert end_tokens(tokenizer) == ends and tokenizer.eos_token_id == turn
        # where nothing is added, nothing that reads the tokenizer runs again
        assert (manifest.read_bytes() == plain.read_bytes()) == (len(ends) == 1)
        (drawn,) = draw(
            causal_lm.load_model(teacher),
            [Prompt([5, 6], 0, 1)],
            Decoding(4, sample=False),
            end_token=end_tokens(tokenizer),
            vocabulary=len(tokenizer),
            micro_batch=1,
        )
        assert drawn.tokens.tolist() == ([text] if len(ends) > 1 else [text] * 4)
        assert drawn.finished == (len(ends) > 1)
    said = capfd.readouterr()
    assert "model 'big': generation_config.json names the end token" in said.out + said.err
    file.write_text(json.dumps({"eos_token_id": "<|eot_id|>"}))
    of_teacher["sha256"] = [[file.name, file_digest(file)]]
    with pytest.raises(
        InputError, match=r"model 'big': eos_token_id of generation_config\.json is"
    ):
        run_tokenizer(tmp_path / "wrong", {**spec, "given": {"big": of_teacher}})


@pytest.mark.parametrize("form", ["messages", "conversations"])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_answer_is_learned_after_what_the_model_gets(tmp_path, name, form):
    talk = harmless(TALK)
    published, manifest = tokenizer_of(tmp_path, name)
    rows, facts = prepared(tmp_path, manifest, [talk_row(talk, form)])
    ids, mask = hand_made(name, published, talk)
    whole = published.apply_chat_template(as_messages(talk), return_dict=False)
    assert ids == whole
    found = [False] * len(ids)
    for turn, each in enumerate(rows):
        prompt, response = each["prompt_ids"], each["response_ids"]
        before = as_messages(talk[: 2 * turn + 1])
        chat = {"add_generation_prompt": True, "return_dict": False}
        assert prompt == published.apply_chat_template(before, **chat)
        end = len(prompt) + len(response)
        assert ids[:end] == [*prompt, *response]
        found[len(prompt) : end] = [True] * len(response)
    assert found == mask and sum(mask) > 20
    assert facts["counts"]["further_turns"] == 2 and facts["counts"]["kept"] == 3
    # what ends an answer is the end token of all that follows
    assert read_json(manifest)["end"] == rows[0]["response_ids"][-1]
    exported = causal_lm.load_tokenizer(tmp_path / "tokenizer")
    assert exported.eos_token_id == rows[0]["response_ids"][-1]
    assert len({each["id"] for each in rows}) == 3 and rows[-1]["id"] == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_text_of_messages_is_text_wherever_it_stands(tmp_path, name):
    """With special tokens in each message: only those of the template are special."""
    published, manifest = tokenizer_of(tmp_path, name)
    special = [t for t in published.get_added_vocab() if t.strip() and t != "<think>"]
    attacked = [(role, f"{text} {''.join(special)} x") for role, text in harmless(TALK)]
    (*_, plain), _ = prepared(tmp_path, manifest, [talk_row(harmless(TALK))])
    (*_, found), _ = prepared(tmp_path, manifest, [talk_row(attacked)])
    known = {published.get_added_vocab()[token] for token in special}
    for column in ("prompt_ids", "response_ids"):
        specials = [[i for i in each[column] if i in known] for each in (plain, found)]
        assert specials[0] == specials[1]
        assert len(found[column]) > len(plain[column]) + 2 * len(special)


def test_an_evaluation_set_asks_for_the_last_answer(tmp_path):
    published, manifest = tokenizer_of(tmp_path, "qwen")
    talk = [("system", "Be brief."), *harmless(TALK)]
    (found,), _ = prepared(tmp_path, manifest, [talk_row(talk)], "test", rouge_tokenizer="auto")
    chat = {"add_generation_prompt": True, "return_dict": False}
    assert found["prompt_ids"] == published.apply_chat_template(as_messages(talk[:-1]), **chat)
    assert found["references"] == [talk[-1][1]] and found["id"] == 0
    # people and judges see the whole conversation, and a model card its messages
    assert found["instruction"].startswith("System: Be brief.\n\nUser: Name a thing")
    assert json.loads(found["messages"]) == as_messages(talk[:-1])
    (single,), _ = prepared(tmp_path, manifest, [row("a")], "test", rouge_tokenizer="auto")
    assert (single["instruction"], single["messages"]) == ("a", "")


def test_long_conversations_of_an_evaluation_set_lose_their_oldest_turns(tmp_path):
    published, manifest = tokenizer_of(tmp_path, "qwen")
    talk = [("system", "Be brief."), ("user", "long " * 60), *harmless(TALK)[1:]]
    limits = {"max_prompt_length": 120, "max_length": 160, "rouge_tokenizer": "auto"}
    (found,), facts = prepared(tmp_path, manifest, [talk_row(talk)], "test", **limits)
    kept = [talk[0], *talk[3:-1]]
    chat = {"add_generation_prompt": True, "return_dict": False}
    expected = published.apply_chat_template(as_messages(kept), **chat)
    while len(expected) > 120:
        del kept[1:3]
        expected = published.apply_chat_template(as_messages(kept), **chat)
    assert found["prompt_ids"] == expected and facts["counts"]["shortened_prompts"] == 1


# what an experiment says of a template


@pytest.mark.parametrize("name", ["llama3", "qwen", "smollm2", "qwen3"])
def test_a_system_prompt_is_for_rows_without_one(tmp_path, name):
    published, manifest = tokenizer_of(tmp_path, name, system='Say "it" {{ x }}\nénd.')
    asked = ("user", "a")
    rows = [row("a"), talk_row([("system", "Own."), asked, ("assistant", "b")])]
    found, _ = prepared(tmp_path, manifest, rows)
    exported = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    for each, system in zip(found, ('Say "it" {{ x }}\nénd.', "Own."), strict=True):
        messages = as_messages([("system", system), asked])
        chat = {"add_generation_prompt": True, "return_dict": False}
        assert each["prompt_ids"] == published.apply_chat_template(messages, **chat)
        # the folder of a model needs no word of it
        said = messages if system == "Own." else messages[1:]
        assert each["prompt_ids"] == exported.apply_chat_template(said, **chat)


@pytest.mark.parametrize("thinking", [None, False, True])
def test_variables_of_a_template(tmp_path, thinking):
    """Qwen3 without thinking begins an answer with an empty thought; else the answer has it."""
    variables = {} if thinking is None else {"enable_thinking": thinking}
    spec = {"variables": variables} if variables else {}
    published, manifest = tokenizer_of(tmp_path, "qwen3", **spec)
    talk = harmless(TALK)
    rows, _ = prepared(tmp_path, manifest, [talk_row(talk)])
    for turn, each in enumerate(rows):
        before, said = as_messages(talk[: 2 * turn + 1]), as_messages(talk[: 2 * turn + 2])
        chat = {"add_generation_prompt": True, "return_dict": False, **variables}
        assert each["prompt_ids"] == published.apply_chat_template(before, **chat)
        whole = published.apply_chat_template(said, return_dict=False, **variables)
        end = len(each["prompt_ids"]) + len(each["response_ids"])
        assert whole[:end] == [*each["prompt_ids"], *each["response_ids"]]
        thought = published.decode(each["response_ids"]).startswith("<think>\n\n</think>\n\n")
        assert thought is (thinking is not False)
    exported = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    chat = {"add_generation_prompt": True, "return_dict": False}
    assert exported.apply_chat_template(as_messages(talk[:1]), **chat) == rows[0]["prompt_ids"]


def test_thoughts_of_earlier_answers_are_left_out_as_the_template_does(tmp_path):
    published, manifest = tokenizer_of(tmp_path, "qwen3")
    thought = "<think>\nA seat.\n</think>\n\nA chair."
    talk = [("user", "a"), ("assistant", thought), ("user", "b"), ("assistant", thought)]
    first, second = prepared(tmp_path, manifest, [talk_row(talk)])[0]
    think = published.convert_tokens_to_ids("<think>")
    assert first["response_ids"].count(think) == second["response_ids"].count(think) == 1
    assert think not in second["prompt_ids"]
    chat = {"add_generation_prompt": True, "return_dict": False}
    assert second["prompt_ids"] == published.apply_chat_template(as_messages(talk[:3]), **chat)
    # with thinking off, a prompt ends in an empty thought, which this answer does not begin with
    _, manifest = tokenizer_of(tmp_path, "qwen3", variables={"enable_thinking": False})
    with pytest.raises(InputError, match=r"the answer '<think>.*' otherwise than others; leave"):
        prepared(tmp_path, manifest, [talk_row(talk[:2])])


def test_a_number_stays_whole_from_the_file_to_the_prompt(tmp_path):
    from test_experiment import GOOD

    from takd.experiment.experiment import load

    chat = "  template: chat\n  template_variables: {effort: 3}\n  max_length: 64"
    text = GOOD.replace("  max_length: 64", chat)
    text = text.replace("{train: {vocabulary: 300}}", "{folder: any, vocabulary: 300}")
    (tmp_path / "mine.yaml").write_text(text)
    spec = specs.tokenizer(load(tmp_path / "mine.yaml", tmp_path))
    effort = "{{ 'Effort ' ~ effort ~ '.\n' }}" + save_chat("chatml", tmp_path / "a").chat_template
    published = {"chat_template": effort}
    _, manifest = tokenizer_of(tmp_path, "chatml", variables=spec["variables"], published=published)
    (found,), _ = prepared(tmp_path, manifest, [row("a")])
    text = causal_lm.load_tokenizer(tmp_path / "tokenizer").decode(found["prompt_ids"])
    assert text.startswith("Effort 3.\n<|im_start|>user")


def test_the_date_of_the_day_is_written_in(tmp_path):
    dated = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}"
    published = {"chat_template": dated + save_chat("chatml", tmp_path / "plain").chat_template}
    _, manifest = tokenizer_of(tmp_path, "chatml", published=published)
    found = read_json(manifest)["template"]["source"]
    assert "strftime_now" not in found and "'Today: ' + \"" in found


def test_what_is_settled_can_be_overruled():
    source = "\n  {%- if n is defined %}{{ n }}{% endif %}{{ messages[0]['content'] }}"
    source += "{% for m in messages[1:] %}|{{ m['content'] }}{{ eos_token }}{% endfor %}"
    text = settled(source, None, {"n": 3}, None, "<e>")
    found = ChatTemplate(text, {"eos_token": "<f>"}, ["<e>"])
    assert found.render([("user", "a")]) == "3a" and found.end == "<e>"
    assert found.answer("b") == ("|", "b")
    assert settled(source, None, {}, None, None) == source


def test_a_template_is_named_by_its_digest_and_a_change_of_it_changes_the_manifest(tmp_path):
    _, manifest = tokenizer_of(tmp_path, "chatml")
    first = read_json(manifest)
    _, manifest = tokenizer_of(tmp_path, "chatml", system="Be brief.")
    second = read_json(manifest)
    assert len(first["template"]["sha256"]) == 64
    assert first["template"]["sha256"] != second["template"]["sha256"]
    assert first["sha256"] != second["sha256"] and first["digest"] != second["digest"]


MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + END }}{% endgeneration %}{{ AFTER }}{% else %}"
    "{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_template_that_marks_answers_marks_what_is_learned(tmp_path):
    chat_template = MARKED.replace("END", "'<|im_end|>'").replace("AFTER", "''")
    published, manifest = tokenizer_of(
        tmp_path, "chatml", published={"chat_template": chat_template}
    )
    talk = harmless(TALK)
    rows, _ = prepared(tmp_path, manifest, [talk_row(talk)])
    marked = published.apply_chat_template(
        as_messages(talk), return_dict=True, return_assistant_tokens_mask=True
    )
    mask = [0] * len(marked["input_ids"])
    for each in rows:
        begin = len(each["prompt_ids"])
        mask[begin : begin + len(each["response_ids"])] = [1] * len(each["response_ids"])
    assert mask == marked["assistant_masks"]


def test_special_tokens_that_begin_an_answer_are_learned(tmp_path):
    """As in the format of gpt-oss, where an answer names its channel."""
    channel = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}{% if m['role'] == 'assistant' %}"
        "{{ '<|endoftext|>final' }}{% endif %}{{ '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )
    published, manifest = tokenizer_of(tmp_path, "chatml", published={"chat_template": channel})
    talk = harmless(TALK)
    rows, _ = prepared(tmp_path, manifest, [talk_row(talk)])
    whole = published.apply_chat_template(as_messages(talk), return_dict=False)
    for each in rows:
        end = len(each["prompt_ids"]) + len(each["response_ids"])
        assert whole[:end] == [*each["prompt_ids"], *each["response_ids"]]
        assert each["response_ids"][0] == published.convert_tokens_to_ids("<|endoftext|>")
    attacked = [talk[0], ("assistant", "a<|endoftext|>b")]
    (found,), _ = prepared(tmp_path, manifest, [talk_row(attacked)])
    assert found["response_ids"].count(found["response_ids"][0]) == 1


def refused(folder, name, chat_template=None, **spec):
    more = {"published": {"chat_template": chat_template}} if chat_template else {}
    with pytest.raises(InputError) as found:
        tokenizer_of(folder, name, **more, **spec)
    assert "\n" not in str(found.value) and str(found.value).endswith(".")
    return str(found.value)


def test_templates_that_are_refused(tmp_path):
    wrong = MARKED.replace("{% generation %}{{ m['content'] + END }}", "{{ m['content'] }}")
    wrong = wrong.replace("{% endgeneration %}", "{% generation %}.{% endgeneration %}")
    says = refused(tmp_path, "chatml", wrong.replace("AFTER", "'<|im_end|>'"))
    assert "marks by {% generation %} another part than the answer" in says
    thinking = CHAT_THINKS.replace("START", "<think>\n")
    assert "begins an answer otherwise than a prompt ends" in refused(tmp_path, "qwen", thinking)
    assert "does not write the system prompt" in refused(
        tmp_path, "chatml", IGNORES_SYSTEM, system="Be brief."
    )
    assert "cannot be used for" in refused(tmp_path, "gemma", system="Be brief.")
    says = refused(tmp_path, "qwen", variables={"enable_thinking": False})
    assert "has no variable 'enable_thinking', which data.template_variables sets" in says


CHAT_THINKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\nSTART' }}{% endif %}"
)
IGNORES_SYSTEM = "{% for m in messages if m['role'] != 'system' %}" + CHAT_THINKS.partition("%}")[
    2
].replace("START", "")


def test_every_reference_of_an_evaluation_set_is_read_before_models_are_trained(tmp_path):
    """The first one alone is learned or counted; likelihoods, which come last, are those of all."""
    raises = "{% if m['content'][0] == '!' %}{{ raise_exception('no') }}{% endif %}"
    template = CHAT_THINKS.replace("START", "").replace("%}", "%}" + raises, 1)
    _, manifest = tokenizer_of(tmp_path, "chatml", published={"chat_template": template})
    rows = [row("a", "", ["b", "c"]), row("d", "", ["e", "!f"])]
    with pytest.raises(
        InputError, match=r"test\.jsonl: the tokenizer's chat template cannot be us"
    ):
        prepared(tmp_path, manifest, rows, "test", rouge_tokenizer="auto")
    found, _ = prepared(tmp_path, manifest, rows, "dev", rouge_tokenizer="auto")
    whole, _ = prepared(tmp_path, manifest, rows[:1], "test", rouge_tokenizer="auto")
    assert [each["references"] for each in found] == [["b", "c"], ["e", "!f"]]
    assert whole[0]["response_ids"] == found[0]["response_ids"]


def test_a_template_without_room_for_earlier_turns_refuses_them(tmp_path):
    last = CHAT_THINKS.replace("START", "").replace("in messages", "in messages[-2:]")
    _, manifest = tokenizer_of(tmp_path, "chatml", published={"chat_template": last})
    prepared(tmp_path, manifest, [row("a")])
    with pytest.raises(
        InputError, match=r"row 0 .*drops or repeats an earlier message; leave such"
    ):
        prepared(tmp_path, manifest, [talk_row(TALK)])


# rows


BAD = {
    "a text": ({"messages": "hello"}, "'messages' is a text; it has to be a list of messages"),
    "an empty list": ({"messages": []}, "an empty list"),
    "a list of texts": ({"messages": ["hello"]}, "message 1 of 'messages': a text"),
    "two users": (
        talk_row([("user", "a"), ("user", "b")]),
        "message 2 of 'messages': its role is 'user', and it follows one of 'user'",
    ),
    "an answer first": (talk_row([("assistant", "a")], "conversations"), "it is the first"),
    "a late system message": (
        talk_row([("user", "a"), ("system", "b")]),
        "its role is 'system', and it follows one of 'user'",
    ),
    "a system message alone": (talk_row([("system", "a")]), "it needs a user message"),
    "an empty answer": (
        talk_row([("user", "a"), ("assistant", " \n")]),
        "message 2 of 'messages': its content is empty",
    ),
    "no text": ({"messages": [{"role": "user", "content": None}]}, "'content' is null"),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
        "'content' is a list; it has to be a text",
    ),
    "an unknown role": (
        {"conversations": [{"from": "narrator", "value": "a"}]},
        "its from is 'narrator'; roles are system, user and assistant",
    ),
    "no role": ({"messages": [{"content": "a"}]}, "its role is null"),
    "a tool call": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{}]}]},
        "message 2 of 'messages': calls a tool or answers a call, which is not supported",
    ),
    "a tool": ({"messages": [{"role": "tool", "content": "a"}]}, "answers a call"),
    "half a character": (
        {"messages": [{"role": "user", "content": "a\ud83d"}]},
        "half of a surrogate pair",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_conversations_that_are_none_are_refused(tmp_path, case):
    record, says = BAD[case]
    good = talk_row(TALK)
    source = write(tmp_path / "rows.jsonl", [good, record])
    with pytest.raises(InputError) as found:
        list(sources.rows(source))
    assert str(found.value).startswith(f"{tmp_path / 'rows.jsonl'}, line 2")
    assert says in str(found.value) and "\n" not in str(found.value)


def test_rows_of_conversations(tmp_path):
    talk = [("system", "s"), *TALK]
    other = [{"role": "user", "content": "a", "name": "Ann", "tool_calls": None}]
    records = [talk_row(talk), {"talk": other, "id": 3}, talk_row(talk[:4], "conversations")]
    source = write(tmp_path / "rows.jsonl", [records[0], records[2]])
    first, second = sources.rows(source)
    assert first == Row(0, TALK[-2][1], "", (TALK[-1][1],), history=(talk[0], *TALK[:-2]))
    assert second == Row(1, TALK[2][1], "", (), history=(talk[0], *TALK[:2]))
    turns = list(first.turns())
    assert [turn.instruction for turn in turns] == [text for role, text in TALK if role == "user"]
    assert [turn.references for turn in turns] == [(t,) for role, t in TALK if role == "assistant"]
    assert [len(turn.history) for turn in turns] == [1, 3, 5] and turns[-1] == first
    # under another name, and with keys that are not read
    unused = sources.Unused()
    source = write(tmp_path / "named.jsonl", records[1:2]) | {"columns": {"messages": "talk"}}
    (found,) = sources.rows(source, unused=unused)
    assert found == Row(0, "a", "", ()) and set(unused.keys) == {"id", "talk.name"}
    # rows with an instruction are no conversations
    source = write(tmp_path / "both.jsonl", [row("i") | records[0]])
    assert [each.instruction for each in sources.rows(source)] == ["i"]


def test_conversations_of_saved_data_and_parquet(tmp_path):
    from datasets import Dataset

    records = [talk_row([("system", "s"), *TALK]), talk_row(TALK[:1])]
    expected = list(sources.rows(write(tmp_path / "rows.jsonl", records)))
    for record in records:  # columns that other rows of such sets fill
        record["messages"][0] |= {"tool_calls": None, "name": ""}
    made = Dataset.from_list(records)
    made.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    made.to_parquet(tmp_path / "parquet/train.parquet")
    for folder in ("saved", "parquet"):
        unused = sources.Unused()
        source = {"folder": str(tmp_path / folder), "split": "train"}
        assert list(sources.rows(source, unused=unused)) == expected and not unused.keys


def test_prompts_alone_stand_last_and_have_no_answer(tmp_path):
    _, manifest = tokenizer_of(tmp_path, "chatml")
    alone = talk_row([("user", "alone")])
    rows = [alone, row("a"), talk_row([*TALK[:2], ("user", "b")]), row("c", "", " ")]
    found, facts = prepared(tmp_path, manifest, rows)
    kept = [(each["id"], bool(each["response_ids"])) for each in found]
    assert kept == [(1, True), (2 + 2**24, True), (0, False), (2, False)]
    counts = facts["counts"]
    assert counts["without_answer"] == 2 and counts["empty_output"] == 1 and counts["kept"] == 4
    assert facts["named"]["without_answer"] == [0, 2]
    source = write(tmp_path / "prompts.jsonl", [{"instruction": "a"}, {"instruction": "b"}])
    source["columns"] = {"output": None}
    assert [each.references for each in sources.rows(source)] == [(), ()]
    # an evaluation set has nothing to score them against
    with pytest.raises(InputError, match="needs at least one reference"):
        prepared(tmp_path, manifest, [alone], "test", rouge_tokenizer="auto")


def test_a_leak_is_any_answer_of_a_conversation_that_is_asked_for_elsewhere(tmp_path):
    _, manifest = tokenizer_of(tmp_path, "chatml")
    held_out = write(tmp_path / "held.jsonl", [row(TALK[0][1], "", "?"), talk_row(TALK[:4])])
    rows, facts = prepared(
        tmp_path,
        manifest,
        [row("other"), talk_row(TALK)],
        drop_leaks=True,
        exclude=[held_out],
    )
    assert facts["counts"]["dropped_leaks"] == 2 and [r["id"] for r in rows] == [0, 1]
    splits = {"train": write(tmp_path / "all.jsonl", [row("other"), talk_row(TALK)])}
    splits |= {"dev": write(tmp_path / "dev.jsonl", [row("dev")]), "held": held_out}
    found = {(each["split"], each["other"]): each for each in summary.leaks(splits, ["held"])}
    assert found["train", "held"]["other_rows"] == 2 and found["train", "dev"]["rows"] == 0
    assert [pair["row"] for pair in found["train", "held"]["examples"]] == [1, 1]


def test_turns_need_a_chat_template(tmp_path):
    text = {"with_input": "{instruction}{input}", "without_input": "Q {instruction}"}
    save_chat("chatml", tmp_path / "published")
    spec = {"source": {"folder": str(tmp_path / "published")}, "template": text}
    manifest = run_tokenizer(tmp_path, spec)
    source = write(tmp_path / "one.jsonl", [talk_row(TALK[:2])])
    (found,), _ = run_prepare(tmp_path, manifest, "train", source, template=text)
    encoder = Encoder.beside(manifest, text)
    assert found["prompt_ids"] == encoder.prompts([f"Q {TALK[0][1]}"])[0]
    source = write(tmp_path / "more.jsonl", [talk_row(TALK)])
    with pytest.raises(InputError, match=r"several turns need `data\.template: chat`"):
        run_prepare(tmp_path, manifest, "train", source, template=text)


def test_a_chat_without_conversations_is_as_a_stage_reads_it(tmp_path):
    """The same rows as instructions and as messages."""
    _, manifest = tokenizer_of(tmp_path, "llama3")
    asked = [("a", "", "b"), ("Say  it", "x\ny", " c ")]
    plain, one = prepared(tmp_path, manifest, [row(*each) for each in asked])
    talks = [talk_row([("user", "\n".join(filter(None, q))), ("assistant", a)]) for *q, a in asked]
    same, two = prepared(tmp_path, manifest, talks)
    for first, second in zip(plain, same, strict=True):
        for column in ("id", "prompt_ids", "response_ids", "references"):
            assert first[column] == second[column]
    assert one["tokens"] == two["tokens"]


def test_likelihoods_read_an_answer_as_it_was_learned(tmp_path):
    from datasets import Dataset

    from takd.evaluation.likelihoods import _texts

    _, manifest = tokenizer_of(tmp_path, "qwen3")
    rows, _ = prepared(
        tmp_path, manifest, [row("a", "", ["b <|im_end|>", "c"])], "test", rouge_tokenizer="auto"
    )
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"row": 0, "seed": 1, "tokens": [5]}) + "\n")
    spec = {"max_length": 1000, "teachers": {}, "seeds": [1]}
    stage = Stage(spec, "-", {"tokenizer": [manifest], "answers": [answers]})
    first, second = _texts(stage, Dataset.from_list(rows))["references"]
    assert first.response == rows[0]["response_ids"] and second.response[-1] == first.response[-1]
