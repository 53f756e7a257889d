"""Data report as one self-contained HTML page."""

from typing import Any

from jinja2 import Environment, StrictUndefined

SCORABLE = {
    "unseen_by_standard": "mostly of letters other than a to z",
    "scores_0_with_standard": "no standard token",
    "scores_0_with_unicode": "no unicode token",
    "changed": "changed by the tokenizer",
}
LABELS = {
    "dropped_prompt_too_long": "dropped: prompt too long",
    "empty_output": "dropped: empty output",
    "dropped_duplicates": "dropped: repeats an earlier row",
    "dropped_leaks": "dropped: stands in an evaluation set",
    "dropped_response_length": "dropped: answer too short or too long",
    "duplicates": "repeat an earlier row",
    "shortened_prompts": "prompt shortened",
    "cut_responses": "response cut",
    "blank_input": "input of white space alone",
    "blank_instruction": "empty instruction",
    "blank_references": "empty references taken off",
}

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Data report</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; } th:first-child, td.text { text-align: left; }
td.text { overflow-wrap: anywhere; min-width: 9rem; } .note { color: #555; max-width: 46rem; }
@media (max-width: 40rem) { th, td { padding: .3rem .4rem; font-size: .9rem; } }
@media (prefers-color-scheme: dark) {
  body { background: #181818; color: #ddd; } th, td { border-color: #444; } .note { color: #aaa; }
}
</style>
<h1>Data report</h1>
<h2>Rows</h2>
<div class="wide"><table id="rows">
<tr><th>split</th><th>rows</th><th>kept</th><th>dropped</th><th>repeats</th><th>without input</th>
<th>source</th></tr>
{% for name, split in instruction.items() -%}
<tr data-split="{{ name }}"><th>{{ name }}</th><td>{{ split.counts.rows }}</td><td>{{ split.counts.kept }}</td>
<td>{{ split.dropped }}</td><td>{{ split.counts.duplicates }}</td><td>{{ split.counts.without_input }}</td>
<td class="text">{{ split.source }}</td></tr>
{% endfor -%}
</table></div>
<p class="note">A repeat has the instruction and the input of an earlier row, whatever its answer.</p>
{% if corpus %}
<p id="corpus">Corpus: {{ corpus.counts.blocks }} blocks with {{ corpus.tokens.text }} tokens from
{{ corpus.counts.documents }} documents; {% if corpus.counts.blocks == corpus.wanted -%}
these are all that was wanted, and the rest was not read
{%- else %}{{ corpus.counts.left_over_tokens }} tokens at the end fill no block{% endif %}.
{% if corpus.counts.empty_documents %}{{ corpus.counts.empty_documents }} empty documents were left out.
{% endif -%}
Source: {{ corpus.source }}.</p>
{% endif %}
{% if unused -%}
<h2>What is not read</h2>
<div class="wide"><table id="unused">
<tr><th>split</th><th>key or file</th><th>rows</th><th>first row</th><th>what it holds there</th></tr>
{% for name, found in unused.items() %}{% for key, of_key in found["keys"].items() -%}
<tr><th>{{ name }}</th><td class="text">{{ key }}</td><td>{{ of_key.rows }}</td><td>{{ of_key.row }}</td>
<td class="text">{{ of_key.example }}</td></tr>
{% endfor %}{% for file in found["files"] -%}
<tr><th>{{ name }}</th><td class="text">{{ file }}</td><td></td><td></td><td class="text">a file of the folder</td></tr>
{% endfor %}{% endfor -%}
</table></div>
<p class="note">Keys of the source beside those that the experiment reads, in rows that hold something there. Where the
input, the instruction or the answer is among them, <code>columns</code> names it (docs/data.md).</p>
{% endif -%}
<h2>The same question in two splits</h2>
<div class="wide"><table id="leaks">
<tr><th>of</th><th>also in</th><th>rows</th><th>rows hit there</th><th>the first, row → row</th></tr>
{% for leak in leaks -%}
<tr data-leak="{{ leak.split }} {{ leak.other }}"><th>{{ leak.split }}</th><td>{{ leak.other }}</td>
<td>{{ leak.rows }}</td><td>{{ leak.other_rows }}</td><td class="text">
{%- for pair in leak.examples %}{{ pair.row }} → {{ pair.other_row }}{{ ", " if not loop.last }}{% endfor -%}
</td></tr>
{% endfor -%}
</table></div>
<p class="note">Instruction and input are equal, character by character; counted in the sources, before anything
is dropped. Rows are counted from 0.</p>
{% if scored -%}
<h2>What the measures can see</h2>
<div class="wide"><table id="scorable">
<tr><th>split</th><th>tokens of ROUGE-L</th><th>references</th><th>rows</th><th>the first row numbers</th></tr>
{% for name, split in scored.items() %}{% for what, label in scorable.items() -%}
<tr data-scorable="{{ name }} {{ what }}"><th>{{ name }}</th><td class="text">{{ split.rouge_tokenizer }}</td>
<td class="text">{{ label }}</td><td>{{ split.scorable.counts[what] }}</td>
<td class="text">{{ split.scorable.named.get(what, []) | join(", ") }}</td></tr>
{% endfor %}{% endfor -%}
</table></div>
<p class="note">Kept rows for all of whose references it holds. Without a token, ROUGE-L is 0 even for the reference
itself; where the tokenizer changes a reference, no answer matches it exactly (docs/measures.md).</p>
{% endif -%}
<h2>Lengths in tokens</h2>
<div class="wide"><table id="lengths">
<tr><th>split</th><th>part</th><th>median</th><th>95 %</th><th>max</th><th>cut</th></tr>
{% for name, split in instruction.items() %}{% for part, length in split.lengths.items() -%}
<tr data-length="{{ name }} {{ part }}"><th>{{ name }}</th><td>{{ part }}</td><td>{{ length.median }}</td>
<td>{{ length.p95 }}</td><td>{{ length.max }}</td>
<td>{{ split.counts["shortened_prompts" if part == "prompt" else "cut_responses"] }}</td></tr>
{% endfor %}{% endfor -%}
</table></div>
<p class="note">Of the kept rows; a prompt with its template, the first reference with its end token.</p>
{% if instruction.values() | selectattr("named") | list -%}
<h2>Rows to look at</h2>
<div class="wide"><table id="named">
<tr><th>split</th><th>what</th><th>rows</th><th>the first row numbers</th></tr>
{% for name, split in instruction.items() %}{% for what, numbers in split.named.items() -%}
<tr><th>{{ name }}</th><td class="text">{{ labels[what] }}</td><td>{{ split.counts[what] }}</td>
<td class="text">{{ numbers | join(", ") }}</td></tr>
{% endfor %}{% endfor -%}
</table></div>
{% endif -%}
</html>
"""


def render(report: dict[str, Any]) -> str:
    """Render the page of a data report."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    splits = dict(report["splits"])
    unused = {
        name: split["unused"] for name, split in splits.items() if any(split["unused"].values())
    }
    corpus = splits.pop("corpus", None)
    scored = {name: split for name, split in splits.items() if "scorable" in split}
    return environment.from_string(PAGE).render(
        instruction=splits,
        corpus=corpus,
        leaks=report["leaks"],
        labels=LABELS,
        unused=unused,
        scored=scored,
        scorable=SCORABLE,
    )
