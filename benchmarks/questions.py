"""Question answering: F1 and exact match of what is served beside PyTorch and two plain baselines.

    python benchmarks/questions.py --save                                     # the shipped questions
    python benchmarks/questions.py --name faq_questions --train train.jsonl --test test.jsonl --label answer --save

The baselines: no answer, always; and the sentence of the context that shares most words with the question, whole, or no
answer where none shares any. The shipped questions have one answer each, or none, that can be told from the text, so
the ceiling is 100 %. What is done stays in `--workspace`: run it again to go on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine_facts import finish
from proved import checks_of, kept, proved, task_options

from deploykit.parity.noninferiority import judge_score_drop, score_interval
from deploykit.recipe import Recipe, load_recipe
from deploykit.runners import Target, infer_all, open_runner
from deploykit.tasks import Answer, Scores, find_task
from deploykit.tasks.questions import Answered
from deploykit.tasks.spans import split_pair

RECIPE = Path(__file__).parents[1] / "recipes" / "questions.yaml"
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]?")
_WORD = re.compile(r"\w+")


def main() -> None:
    parser = task_options(__doc__, "questions")
    parser.add_argument("--train", help="questions with their contexts and answers; the shipped ones unless told")
    parser.add_argument("--test", help="likewise, to certify on")
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="answer")
    options = parser.parse_args()
    own = [f"data.text={options.text}", f"data.label={options.label}"]
    if options.train and options.test:
        own += [f"data.train={options.train}", f"data.test={options.test}"]
    found = measured(load_recipe(RECIPE, [*own, *options.set]), options.workspace, options.repository)
    if not options.train:
        found["ceiling"] = {"F1": 1.0, "exact match": 1.0}
    finish(options.name, found, as_json=options.json, save=options.save)


def measured(recipe: Recipe, workspace: Path, repository: Path) -> dict[str, Any]:
    """What the recipe came to: through the server, in PyTorch, and what is answered without a model."""
    result, parity = proved(recipe, workspace, repository)
    context = kept(recipe, workspace)
    data, task = context.data(), context.task
    texts = data.test.texts
    right = task.right_answers(data.test.labels or (), data.label_names)
    answers = {
        "no answer": [Answered(0, 0)] * len(texts),
        "nearest sentence": [nearest_sentence(text) for text in texts],
        "pytorch": answered(Target("torch", str(context.whole), task=task.name), texts),
        "served": answered(Target("onnxruntime", str(context.folder("quantize")), task=task.name), texts),
    }  # what is served answers as its file in process, bit for bit: a check of the parity report
    scores = {form: task.scores(each, right).by_metric(task.metric) for form, each in answers.items()}
    answerable = np.array([bool(wanted.as_json("")["answer"]) for wanted in right])
    return {
        "n": len(texts),
        "unanswerable": float((~answerable).mean()),
        **{
            metric: {form: [each[metric].value, *score_interval(each[metric])] for form, each in scores.items()}
            for metric in scores["served"]
        },
        "F1_answerable": {form: _mean(each[task.metric], answerable) for form, each in scores.items()},
        "F1_unanswerable": {form: _mean(each[task.metric], ~answerable) for form, each in scores.items()},
        "drop_upper_95": {
            metric: judge_score_drop(ours, scores["served"][metric], recipe.goal.max_drop, metric=metric).bound
            for metric, ours in scores["pytorch"].items()
        },
        "verdict": parity.verdict,
        "other_answers": parity.flips,
        "checks": checks_of(parity),
        "scheme": result.scheme,
        "size_mb": {"pytorch": result.reference.size_mb, "served": result.shipped.size_mb},
    }


def answered(target: Target, texts: Sequence[str]) -> list[Answer]:
    """The answers to all questions, one at a time, as they are served."""
    with open_runner(target) as runner:
        outputs = infer_all(runner, texts, [[index] for index in range(len(texts))])
    return find_task(target.task).answers(outputs, ("start", "end"))


def nearest_sentence(message: str) -> Answered:
    """The sentence of the context that shares most words with the question; no answer where none shares any."""
    question, context = split_pair(message)
    asked = set(_WORD.findall(question.lower()))
    sentences = list(_SENTENCE.finditer(context))
    shared = [len(asked & set(_WORD.findall(sentence[0].lower()))) for sentence in sentences]
    if not any(shared):
        return Answered(0, 0)
    best = sentences[shared.index(max(shared))]
    return Answered(len(question) + 1 + best.start(), len(question) + 1 + best.end(), best[0])


def _mean(scores: Scores, kept: Any) -> float:
    return float(scores.earned[kept].mean())


if __name__ == "__main__":
    main()
