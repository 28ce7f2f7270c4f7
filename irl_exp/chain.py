"""The experiment, as the figure of the paper shows it: which stage follows which. The only file that knows the order.

`stage(name, config, **inputs)` is one step: a file in stages/, a node of the config, the steps and nodes it reads. A
step that is switched off, that `until` leaves out, or that lacks an input is None; what a step can do without it gets
through `given`.
"""

from __future__ import annotations

from irl_exp.config import Config, Node
from irl_exp.machinery.runtime import Device
from irl_exp.stages.step import Step, Steps, first, given

NO_GPU = ("data", "reward", "second_judge", "judge")
"""Stages that need none, unless R* is a language model, on a cluster where GPUs are asked for."""
AHEAD = ("baseline", "second_judge", "judge", "candidates", "explain", "benchmark")
"""What no training has to wait for: where one job has a machine for itself, a second process computes it meanwhile."""


def build(config: Config, device: Device) -> dict[str, Step]:
    """The steps of one run by stage, each after what it reads, and in this order unless another process is at it."""
    steps = Steps(config.reaches, device.precision, device.sampler)
    stage = steps.add
    # What there is before: texts, the ground truth R*, the reference policy.
    data = stage("data", config.data, **given(expert=config.of_expert("texts")))
    truth = stage("reward", config.truth, data=data)
    adapter = given(adapter=config.adapter_node)
    reference = stage("sft", config.sft, model=config.reference_model, data=data, **adapter)
    # The expert, by RL on R* or given, and what expert and reference write on the same prompts.
    planted = given(shortcut=config.planted("ground_truth"))
    expert = first(
        stage("rlhf", config.rl_on_truth, reference=reference, reward=truth, data=data, **planted, **adapter),
        stage("checkpoint", config.of_expert("checkpoint"), reference=reference, model=config.model),
        stage("further", config.of_expert("further"), reference=reference, data=data, **adapter),
        reference if config.of_expert("itself") else None,
    )
    baseline = stage("baseline", config.baseline, reference=reference, data=data)
    planted = given(baseline=baseline, shortcut=config.planted("demonstrations"))
    writers = {"reference": reference, "expert": expert or config.of_expert("texts")}
    demos = stage("demonstrations", config.demonstrations, **writers, data=data, **planted)
    # Inverse RL: the reward that tells the two apart.
    contrast = {"demonstrations": demos, "reference": reference, "data": data}
    features = stage("features", config.irl.frozen_features, **contrast)
    others = {"features": features, "expert": expert, "reward": truth}
    read = {name: step for name, step in others.items() if name in {"features", *config.irl.also_reads}}
    learned = stage("irl", config.irl.of_identity, **contrast, **given(**read))
    # What the recovered reward pays for, in words.
    written = given(features=features, reference=reference)
    candidates = stage("candidates", config.explain_node, demonstrations=demos, **written, **given(expert=expert))
    stage("explain", config.explain_node, demonstrations=demos, **written, candidates=candidates, irl=learned)
    # RL on the recovered reward.
    refinetuned = stage("refinetune", config.rl_on_learned, reference=reference, irl=learned, data=data, **adapter)
    # A second judge beside R*, and what both say of the demonstrations.
    second_judge = stage("second_judge", config.second_judge, data=data)
    judge = stage("judge", Node(), demonstrations=demos, data=data, reward=truth, second_judge=second_judge)
    # All policies on a second set of prompts: one step for those that a sweep of IRL shares, one for its own.
    judges = {"reference": reference, **given(reward=truth, second_judge=second_judge)}
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
