"""Stage: sample a teacher's responses to one part of the training prompts.

Inputs: `teacher`, `prompts`, `tokenizer` (manifests). Outputs: `answers` (one line per prompt: its
row, its tokens, whether the end token was sampled), `metrics`, `manifest`. Responses are saved as
they are sampled, and a killed run resumes from them. A response depends on its prompt only (up to
rounding), not on the number of parts.
"""

import json

from datasets import load_from_disk

from takd.decoding import loading
from takd.decoding.resumable import answer, prompts_of
from takd.decoding.sampling import Decoding
from takd.models import causal_lm
from takd.models.precision import device_name
from takd.runtime.checkpoints import resumable
from takd.runtime.metrics_log import timed
from takd.runtime.stage import Stage, write_text


def run(stage: Stage) -> None:
    """Sample the missing responses of this part, which is every `parts`-th row of the split."""
    loading.configure_libraries(stage)
    spec = stage.spec
    dataset = load_from_disk(str(stage.input("prompts").parent / "dataset"))
    title = f"{spec['lineage']} seed {spec['seed']} writes, part {spec['part']} of {spec['parts']}"
    with resumable(stage, stage.outputs["manifest"]) as folder, timed(folder) as journal:
        answers = answer(
            stage,
            title,
            stage.input("teacher").parent / "model",
            causal_lm.load_tokenizer(stage.input("tokenizer").parent / "tokenizer"),
            prompts_of(
                dataset, range(spec["part"] - 1, len(dataset), spec["parts"]), [spec["noise"]]
            ),
            Decoding(**spec["decoding"]),
            folder,
        )
        lines = [
            json.dumps({"row": row, **found}) + "\n" for (row, _), found in sorted(answers.items())
        ]
        write_text(stage.outputs["answers"], "".join(lines))
        journal.tokens = sum(len(found["tokens"]) for found in answers.values())
        device = device_name()
        journal.close(len(answers), device=device, processes=1, **stage.origin())
        write_text(stage.outputs["metrics"], journal.path.read_text(encoding="utf-8"))
        stage.write_manifest(stage.outputs["manifest"], kind="answers", rows=len(answers))
    stage.say(f"{title}: {len(answers)} responses")
