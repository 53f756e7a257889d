"""Stage: sample a teacher's responses to one part of the training prompts.

Inputs: `teacher`, `prompts`, `tokenizer` (manifests). Outputs: `answers` (one line per prompt: its
row, the tokens of the response, whether the end token was sampled), `metrics`, `manifest`.
Responses are saved as they are sampled, and a killed run resumes from them. A response depends on
its prompt only (up to rounding), not on the number of parts.
"""

from takd.data.arrow import dataset_of
from takd.decoding.loading import close_log, configure_libraries
from takd.decoding.prompts import Decoding
from takd.decoding.resumable import prompts_of, respond
from takd.models.causal_lm import tokenizer_of
from takd.runtime.files import write_lines
from takd.runtime.sharding import resumable
from takd.runtime.stage import Stage


def run(stage: Stage) -> None:
    """Sample the missing responses of this part, which is every `parts`-th row of the split."""
    configure_libraries(stage)
    spec, dataset = stage.spec, dataset_of(stage, "prompts")
    rows = range(spec["part"] - 1, len(dataset), spec["parts"])
    title = f"{spec['lineage']} seed {spec['seed']} writes, part {spec['part']} of {spec['parts']}"
    with resumable(stage, stage.outputs["manifest"]) as (folder, _, journal):
        responses = respond(
            stage,
            title,
            stage.input("teacher").parent / "model",
            tokenizer_of(stage),
            prompts_of(dataset, rows, [spec["noise"]]),
            Decoding(**spec["decoding"]),
            folder,
        )
        lines = ({"row": row, **found} for (row, _), found in sorted(responses.items()))
        write_lines(stage.outputs["answers"], lines)
        tokens = sum(len(found["tokens"]) for found in responses.values())
        close_log(stage, journal, len(responses), tokens)
        stage.write_manifest(stage.outputs["manifest"], kind="answers", rows=len(responses))
    stage.say(f"{title}: {len(responses)} responses")
