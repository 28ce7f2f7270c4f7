"""The experiment, as the figure of the paper shows it: which stage follows which. The only file that knows the order.

`stage(name, config, **inputs)` is one step: a file in stages/, a node of the config, the steps and nodes it reads. A
step that is switched off, that `until` leaves out, or that lacks an input is None; what a step can do without it gets
through `given`.
"""

from __future__ import annotations

from irl_exp.config import Config, Node
from irl_exp.machinery.runtime import Device
from irl_exp.stages.step import Step, Steps, given


def build(config: Config, device: Device) -> dict[str, Step]:
    """The steps of one run by stage, in the order in which they run."""
    steps = Steps(config.reaches, device.precision)
    stage = steps.add
    # What there is before RLHF: texts, the ground truth R*, a judge of its own, the reference policy.
    data = stage("data", config.data)
    truth = stage("reward", config.reward, data=data)
    second_judge = stage("second_judge", Node(), data=data)
    reference = stage("sft", config.sft, model=config.model, data=data)
    # RLHF on R*, and what expert and reference write on the same prompts.
    planted = given(shortcut=config.planted("ground_truth"))
    expert = stage("rlhf", config.rlhf, reference=reference, reward=truth, data=data, **planted)
    planted = given(shortcut=config.planted("demonstrations"))
    demos = stage("demonstrations", config.demonstrations, expert=expert, reference=reference, data=data, **planted)
    judge = stage("judge", Node(), demonstrations=demos, data=data, reward=truth, second_judge=second_judge)
    # Inverse RL: the reward that tells the two apart.
    contrast = {"demonstrations": demos, "reference": reference, "data": data}
    features = stage("features", config.irl.frozen_features, **contrast)
    also = config.irl.also_reads
    learned = stage(
        "irl",
        config.irl.of_identity,
        **contrast,
        **given(
            features=features,
            expert=expert if "expert" in also else None,
            reward=truth if "reward" in also else None,
        ),
    )
    # What the recovered reward pays for, in words.
    texts = {"demonstrations": demos, **given(features=features, reference=reference)}
    candidates = stage("candidates", config.explain_node, **texts, **given(expert=expert))
    stage("explain", config.explain_node, **texts, candidates=candidates, irl=learned)
    # RL on the recovered reward.
    refinetuned = stage("refinetune", config.refinetune, reference=reference, irl=learned, data=data)
    # All policies on a second set of prompts: one step for those that a sweep of IRL shares, one for its own.
    judges = {"reward": truth, "second_judge": second_judge, "reference": reference}
    benchmark = stage("benchmark", config.second_prompts, data=data, **judges, **given(expert=expert))
    benchmark_refinetuned = stage(
        "benchmark_refinetuned", config.second_prompts, **judges, benchmark=benchmark, refinetune=refinetuned
    )
    # Judgement on held-out prompts. The scores of the learned reward say all that it needs to know of the features.
    stage(
        "evaluate",
        config.evaluate,
        data=data,
        **judges,
        **given(
            expert=expert,
            demonstrations=demos,
            judge=judge,
            irl=learned,
            refinetune=refinetuned,
            benchmark=benchmark,
            benchmark_refinetuned=benchmark_refinetuned,
            shortcut=config.planted(),
        ),
    )
    return steps.by_stage
