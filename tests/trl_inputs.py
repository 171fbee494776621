"""Selections and trainers of a few steps that the tests of training share."""

from __future__ import annotations

from rap.trl.rewards import completion_text


def selection_of(pool, kept, **settings):
    """A selection of about these rows: their answers depend on the image, all others are
    right without it too (and as hard as their row number says)."""
    import pyarrow as pa

    from rap.scores.scores import Scores
    from rap.selection.choosing import choose

    rows = []
    for i, name in enumerate(pool.ids):
        right = (4, 0) if i in kept else (1 + i % 4, 5)
        for arm, passed in zip((True, False), right, strict=True):
            rows += [(name, arm, k < passed) for k in range(5)]
    names = ("id", "with_image", "correct")
    table = pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))
    scores = Scores.from_rollouts(table, dataset=pool)
    return choose(scores, budget=len(kept) / len(pool), **settings)


def odd(completions, **columns):
    """Something to learn for a model with random weights."""
    return [float(len(completion_text(c)) % 2) for c in completions]


def settings(out, algorithm="GRPO", **more):
    import trl

    options = dict(
        output_dir=str(out),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=5,
        max_steps=3,
        learning_rate=1e-3,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        beta=0.0,  # RLOO's reference model would be read from where the model came from
        disable_tqdm=True,
    )
    return getattr(trl, f"{algorithm}Config")(**options | more)


def trainer(out, data, algorithm="GRPO", reward=odd, reselect=None, model=None, **more):
    import rap.trl
    from rap.demo.tiny import tiny_qwen2_5_vl

    model, processor = model or tiny_qwen2_5_vl()
    return getattr(rap.trl, f"{algorithm}Trainer")(
        model,
        reward,
        args=settings(out, algorithm, **more),
        train_dataset=data,
        processing_class=processor,
        reselect=reselect,
    )


def weights(made):
    import torch

    return torch.cat([p.detach().flatten() for p in made.model.parameters()])
