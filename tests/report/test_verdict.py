"""The verdict: what is said of which numbers, and which numbers get a warning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irl_exp.report import verdict
from irl_exp.report.cells import Outcome
from irl_exp.report.verdict import Verdict

patient = settings(deadline=None)  # a busy machine is no failure

TOXICITY = {"reward.name": "classifier", "irl.name": "margin"}
SFT = {
    "n_prompts": 250.0,
    "reference/n_completions": 1750.0,
    "reference/toxic_count": 875.0,
    "reference/toxic_fraction": 0.5,
    "reference/toxic_fraction_low": 0.46,
    "reference/toxic_fraction_high": 0.54,
    "reference/second_toxic_fraction": 0.48,
    "reference/reward_mean": 0.0,
    "reference/length_mean": 12.0,
    "reference/distinct_fraction": 0.98,
    "reference/empty_fraction": 0.0,
}
RLHF = {
    **SFT,
    "expert/n_completions": 1750.0,
    "expert/toxic_count": 70.0,
    "expert/toxic_fraction": 0.04,
    "expert/toxic_fraction_low": 0.03,
    "expert/toxic_fraction_high": 0.05,
    "expert/second_toxic_fraction": 0.05,
    "expert/reward_mean": 2.5,
    "expert/length_mean": 13.0,
    "expert/distinct_fraction": 0.9,
    "expert/empty_fraction": 0.001,
}
DEMONSTRATIONS = {
    **RLHF,
    "implicit/n_completions": 1750.0,
    "implicit/n_civil": 875.0,
    "implicit/auroc": 0.859,
    "implicit/pair_accuracy": 0.743,
    "pooled/author/auroc": 0.8,
}
IRL = {
    **DEMONSTRATIONS,
    "irl/auroc": 0.87,
    "irl/auroc_low": 0.86,
    "irl/auroc_high": 0.88,
    "irl/pair_accuracy": 0.736,
    "pooled/irl/auroc": 0.94,
}
WHOLE = {
    **IRL,
    "refinetuned/n_completions": 1750.0,
    "refinetuned/toxic_count": 87.5,
    "refinetuned/toxic_fraction": 0.05,
    "refinetuned/second_toxic_fraction": 0.06,
    "refinetuned/reward_mean": 2.2,
    "refinetuned/length_mean": 12.0,
    "refinetuned/distinct_fraction": 0.7,
    "refinetuned/empty_fraction": 0.0,
    "recovered_fraction": 0.88,
    "recovered_fraction_low": 0.85,
    "recovered_fraction_high": 0.91,
    "overoptimisation/over_optimised": 0.0,
    "refinetuned/kl": 2.9,
    "expert/kl": 2.2,
    "equal_kl/from": 0.1,
    "equal_kl/to": 2.3,
    "equal_kl/refinetuned_reward": 2.3,
    "equal_kl/expert_reward": 2.5,
    "equal_kl/difference": -0.2,
    "equal_kl/difference_low": -0.3,
    "equal_kl/difference_high": -0.1,
}
ONE = "One run: [ ] are 95 % intervals over prompts, which say nothing of other seeds."
POLICIES = (
    "RLHF on R* (classifier) took toxic completions from 50.0 % [46.0 %, 54.0 %] to 4.0 % [3.0 %, 5.0 %]; by the "
    "second judge from 48.0 % to 5.0 %."
)
LEARNED = (
    "The learned reward (margin) has AUROC 0.870 [0.860, 0.880] for civil against toxic (the log ratio of the "
    "policies: 0.859) and orders 73.6 % of the pairs of a prompt as R* does, on test completions of the reference; "
    "pooled with the expert's the AUROC is 0.940, where knowing who wrote a text, and no more, gets 0.800."
)
REFINETUNED = (
    "A policy trained on it writes 5.0 % toxic completions, by the second judge 6.0 %.",
    "At equal KL (0.100 to 2.300 nats, prompts of fit) its mean R* less the expert's is -0.200 [-0.300, -0.100].",
    "It recovers 88.0 % [85.0 %, 91.0 %] of the expert's gain in mean R* (its KL in nats 2.900, the expert's 2.200).",
)


def run(number: int, name: str, metrics: Mapping[str, float] | None, **facts: object) -> Outcome:
    status = "failed" if metrics is None else "completed"
    known = {**TOXICITY, **{key.replace("__", "."): value for key, value in facts.items()}}
    return Outcome(number, name, Path(str(number)), status, metrics=metrics, facts=known)


SEEDS = [
    run(
        seed,
        f"irl.seed={seed}",
        {**WHOLE, "irl/auroc": 0.86 + seed / 100, "refinetuned/toxic_fraction": 0.03 + seed / 100},
        artifacts__sft="a",
        artifacts__rlhf="b",
        artifacts__demonstrations="c",
    )
    for seed in range(3)
]


# ---------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        (SFT, ["The reference policy writes 50.0 % [46.0 %, 54.0 %] toxic completions."]),
        (RLHF, [POLICIES]),
        (
            DEMONSTRATIONS,
            [
                POLICIES,
                "The log ratio of expert and reference has AUROC 0.859 for civil against toxic and orders 74.3 % of "
                "the pairs of a prompt as R* does, on test completions of the reference.",
            ],
        ),
        (IRL, [POLICIES, LEARNED]),
        (WHOLE, [POLICIES, LEARNED, *REFINETUNED]),
    ],
    ids=["sft", "rlhf", "demonstrations", "irl", "evaluate"],
)
def test_what_a_run_has_come_to_is_said_and_nothing_else(metrics: Mapping[str, float], told: list[str]) -> None:
    assert verdict.of_run(metrics, TOXICITY) == Verdict((*told, ONE))


def test_a_reward_that_is_not_about_toxicity_is_told_by_its_mean() -> None:
    """The second judge, who judges toxicity, is no witness there."""
    first, _, policy, *_ = verdict.of_run(WHOLE, {"reward.name": "length"}).sentences
    assert first == (
        "RLHF on R* (length) took completions with R* < 0 from 50.0 % [46.0 %, 54.0 %] to 4.0 % [3.0 %, 5.0 %]; mean "
        "R* from 0.000 to 2.500."
    )
    assert policy == "A policy trained on it writes 5.0 % completions with R* < 0."


def test_labels_of_a_sequence_classifier_are_its_own_words() -> None:
    facts = {"reward.name": "sequence_classifier", "reward.toxic": "hate", "reward.civil": "nothate"}
    text = verdict.of_run(WHOLE, facts).text()
    assert "took 'hate' completions from" in text
    assert "for 'nothate' against 'hate'" in text
    assert "toxic" not in text


def test_a_change_within_the_intervals_is_no_clear_change() -> None:
    still = {**RLHF, "expert/toxic_fraction": 0.47, "expert/toxic_fraction_high": 0.51}
    assert "47.0 % [3.0 %, 51.0 %], which is no clear change;" in verdict.of_run(still, TOXICITY).text()


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("placebo", "The placebo, a reward of expert and reference swapped at random in each pair, has AUROC"),
        ("probe", "The probe, which is fitted on the label of R* itself, has AUROC"),
        ("probe_regression", "The probe (regression), which is fitted on R* itself, has AUROC"),
        ("author", "The reward that knows who wrote a text and nothing else (author) has AUROC"),
        ("majority", "The constant reward (majority) has AUROC"),
        ("implicit", "The log ratio of expert and reference (implicit) has AUROC"),
    ],
)
def test_what_is_no_inverse_rl_is_not_called_so(method: str, told: str) -> None:
    text = verdict.of_run(IRL, {**TOXICITY, "irl.name": method}).text()
    assert told in text
    assert "learned reward" not in text


def test_a_planted_shortcut_is_a_part_of_what_rlhf_optimised() -> None:
    planted = {**TOXICITY, "shortcut.name": "marker", "shortcut.where": "ground_truth"}
    assert "RLHF on R* (classifier) plus a planted shortcut (marker) took" in verdict.of_run(RLHF, planted).text()
    later = {**planted, "shortcut.where": "demonstrations"}
    assert "RLHF on R* (classifier) took" in verdict.of_run(RLHF, later).text()


def test_a_pooled_number_is_never_told_without_that_of_the_author() -> None:
    alone = {key: value for key, value in IRL.items() if key != "pooled/author/auroc"}
    assert "0.940" not in verdict.of_run(alone, TOXICITY).text()


def test_without_facts_the_sentences_say_less_and_hold() -> None:
    text = verdict.of_run(WHOLE).text()
    assert text.startswith("RLHF on R* took completions with R* < 0 from 50.0 %")
    assert "toxic" not in text


@patient
@given(st.sets(st.sampled_from(sorted(WHOLE))), st.sampled_from([TOXICITY, {"reward.name": "imported"}, {}]))
def test_whatever_is_missing_of_the_numbers_the_rest_is_told(lost: set[str], facts: Mapping[str, object]) -> None:
    metrics = {key: value for key, value in WHOLE.items() if key not in lost}
    for found in (verdict.of_run(metrics, facts), verdict.of_launch([run(0, "seed=0", metrics), *SEEDS])):
        assert found.sentences
        assert not re.search(r"None|nan|inf\b|[{}]|  |\(\)", found.text())


def test_one_number_of_two_is_told_alone() -> None:
    lost = {key: value for key, value in IRL.items() if key != "irl/pair_accuracy"}
    found = verdict.of_run(lost, TOXICITY).sentences[1]
    assert found.startswith("The learned reward (margin) has AUROC 0.870")
    assert "pairs" not in found


# ---------------------------------------------------------------- many runs


def test_runs_of_one_expert_say_what_was_held_fixed() -> None:
    found = verdict.of_launch(SEEDS)
    assert found.sentences[0] == POLICIES, "one expert, one number, with its interval"
    assert "has AUROC 0.870 (0.860 to 0.880)" in found.sentences[1]
    assert "writes 4.0 % (3.0 % to 5.0 %) toxic completions" in found.sentences[2]
    assert found.sentences[-1] == (
        "3 runs ([ ]: 95 % over prompts, ( ): range over runs) that differ in irl.seed share one reference policy, one "
        "expert and one set of demonstrations: they say nothing of how another would come out."
    )


def test_a_number_that_some_runs_lack_says_how_many_have_it() -> None:
    lost = {key: value for key, value in WHOLE.items() if not key.startswith("recovered_fraction")}
    runs = [run(seed, f"irl.seed={seed}", {**WHOLE, "recovered_fraction": 0.8 + seed / 10}) for seed in range(2)]
    text = verdict.of_launch([*runs, run(2, "irl.seed=2", lost)]).text()
    assert "recovers 85.0 % (80.0 % to 90.0 %; 2 of 3 runs) of" in text


def test_what_only_some_runs_reach_is_not_shared_by_all() -> None:
    runs = [
        run(0, "until=sft", SFT, artifacts__sft="a"),
        run(1, "until=rlhf", RLHF, artifacts__sft="a", artifacts__rlhf="b"),
    ]
    text = verdict.of_launch(runs).text()
    assert "to 4.0 % [3.0 %, 5.0 %] (1 of 2 runs)" in text
    assert "that differ in until share one reference policy: they" in text


def test_a_change_in_some_runs_is_not_one_in_all() -> None:
    still = {**RLHF, "expert/toxic_fraction": 0.47, "expert/toxic_fraction_high": 0.51}
    text = verdict.of_launch([run(seed, f"rlhf.seed={seed}", found) for seed, found in enumerate((RLHF, still))]).text()
    assert "to 25.5 % (4.0 % to 47.0 %), though not clearly in every run;" in text


def test_nested_seeds_say_how_many_of_each_there_were() -> None:
    runs = [
        run(
            2 * expert + drawn,
            f"rlhf.seed={expert},demonstrations.seed={drawn}",
            WHOLE,
            artifacts__sft="a",
            artifacts__rlhf=f"e{expert}",
            artifacts__demonstrations=f"e{expert}d{drawn}",
        )
        for expert in range(2)
        for drawn in range(2)
    ]
    assert verdict.of_launch(runs).sentences[-1] == (
        "4 runs ([ ]: 95 % over prompts, ( ): range over runs) that differ in rlhf.seed and demonstrations.seed have 2 "
        "experts and 4 sets of demonstrations and share one reference policy: they say nothing of how another would "
        "come out."
    )


def test_cells_are_told_by_their_ends_and_not_thrown_together() -> None:
    cells = {"irl=margin": 0.94, "irl=placebo": 0.5, "irl=implicit": 0.96}
    runs = [
        run(3 * number + seed, f"until=irl,{cell},irl.seed={seed}", {**IRL, "irl/auroc": value + seed / 100})
        for number, (cell, value) in enumerate(cells.items())
        for seed in range(2)
    ]
    found = verdict.of_launch(runs).sentences
    assert found[1] == (
        "Of 3 cells, AUROC of the learned reward on the reference's completions is on average highest at 0.965 in "
        "irl=implicit (2 runs, 0.960 to 0.970) and lowest at 0.505 in irl=placebo (2 runs, 0.500 to 0.510)."
    )
    assert not any("The learned reward" in sentence for sentence in found)


def test_values_of_different_rewards_are_not_compared() -> None:
    runs = [
        run(number, f"reward={kind}", {**WHOLE, "refinetuned/reward_mean": float(number)}, reward__name=kind)
        for number, kind in enumerate(("length", "sentiment"))
    ]
    text = verdict.of_launch(runs).text()
    assert "completions with R* < 0" in text
    assert "mean R* of the refinetuned policy" not in text


def test_jobs_without_a_result_are_counted_first() -> None:
    lost = [run(3, "irl.seed=3", None), *SEEDS]
    assert verdict.of_launch(lost).sentences[0] == "Of 4 jobs 3 have a result."
    assert verdict.of_launch(lost[:1]) == Verdict(("None of 1 jobs has a result.",))


def test_a_launch_of_one_job_says_what_its_run_says() -> None:
    alone = verdict.of_launch([run(0, "scale=tiny", WHOLE)])
    assert alone == verdict.of_run(WHOLE, TOXICITY, "scale=tiny")


# ---------------------------------------------------------------- where a number misleads


def warnings(changes: Mapping[str, float | None], name: str = "", facts: Mapping[str, object] = TOXICITY) -> str:
    """The one warning about the whole chain with these changes; nothing without one."""
    metrics = {key: value for key, value in {**WHOLE, **changes}.items() if value is not None}
    return "\n".join(verdict.of_run(metrics, facts, name).warnings)


def test_numbers_that_do_not_mislead_get_no_warning() -> None:
    assert warnings({}) == ""
    assert warnings({"reward/accuracy": 0.95, "reward/majority_accuracy": 0.5, "reward/n": 500.0}) == ""


@pytest.mark.parametrize(
    ("judge", "told"),
    [("reward", "R* errs on 11.0 % of"), ("second_judge", "The second judge errs"), ("reward/tone", "R* of tone errs")],
)
def test_a_judge_hardly_above_the_majority(judge: str, told: str) -> None:
    found = warnings({f"{judge}/accuracy": 0.89, f"{judge}/majority_accuracy": 0.88, f"{judge}/n": 500.0})
    assert found.startswith(told)
    assert "500 held-out texts, the majority class on 12.0 %" in found


def test_texts_of_test_that_stand_in_training_and_judges_that_err_alike() -> None:
    found = warnings({"data/completions_seen": 0.27, "data/completion_4grams_seen": 0.87})
    assert "27.0 % of the human completions of test, and 87.0 % of their 4-grams" in found
    assert warnings({"data/completions_seen": 0.0, "data/completion_4grams_seen": 0.01}) == ""
    assert "R* and the second judge err on the same human texts (kappa 0.70)" in warnings(
        {"second_judge/independence/error_kappa": 0.7}
    )
    assert warnings({"second_judge/independence/error_kappa": 0.5}) == ""


def test_few_of_one_class() -> None:
    found = warnings({"implicit/n_civil": 1710.0})
    assert found == "40 of 1750 completions are toxic: AUROC, accuracy and shares rest on these."
    assert warnings({"implicit/n_civil": 1700.0}) == ""
    assert "40 of 1750 completions are civil" in warnings({"implicit/n_civil": 40.0})


def test_one_class_only() -> None:
    changes = {"implicit/n_civil": 1750.0, "irl/auroc": None, "implicit/auroc": None}
    assert warnings(changes) == "All 1750 completions are civil: no AUROC, and an accuracy says nothing."
    metrics = {key: value for key, value in {**WHOLE, **changes}.items() if value is not None}
    assert "The learned reward (margin) orders 73.6 % of the pairs" in verdict.of_run(metrics, TOXICITY).text()


def test_one_class_of_a_chain_that_ends_before_its_demonstrations() -> None:
    clean = {**RLHF, "reference/toxic_count": 3.0, "expert/toxic_count": 0.0}
    (found,) = verdict.of_run(clean, TOXICITY).warnings
    assert found.startswith("3 of 3500 completions are toxic")


@pytest.mark.parametrize("policy", ["expert", "refinetuned"])
def test_completions_halved_in_length(policy: str) -> None:
    found = warnings({f"{policy}/length_mean": 5.9})
    assert found == (
        f"The {policy} writes 5.9 tokens a completion, the reference 12.0: brevity alone may explain its R*."
    )
    asked = {"reward.name": "length"}, {"reward.name": "weighted", "reward.parts.brevity.name": "length"}
    assert [warnings({f"{policy}/length_mean": 5.9}, facts=facts) for facts in asked] == ["", ""]


def test_a_policy_that_repeats_itself() -> None:
    assert "refinetuned writes 40.0 % distinct completions" in warnings({"refinetuned/distinct_fraction": 0.4})


@pytest.mark.parametrize("policy", ["reference", "expert", "refinetuned"])
def test_many_empty_completions(policy: str) -> None:
    assert warnings({f"{policy}/empty_fraction": 0.1}) == f"10.0 % of the {policy}'s completions are empty."
    assert warnings({f"{policy}/empty_fraction": 0.09}) == ""


def test_far_below_the_expert_at_equal_kl() -> None:
    low = {"equal_kl/refinetuned_reward": 1.5, "equal_kl/difference_high": -0.8}
    assert "(0.100 to 2.300 nats) refinetune has R* 1.500, the expert 2.500" in warnings(low)
    assert warnings({**low, "equal_kl/difference_high": 0.1}) == "", "within its interval"


@pytest.mark.parametrize("policy", ["expert", "refinetuned"])
def test_a_policy_that_the_second_judge_does_not_follow(policy: str) -> None:
    found = warnings({f"{policy}/second_toxic_fraction": 0.4})
    assert f"toxic completions of the {policy} is 9" in found
    assert "and 16.7 % by the second judge" in found
    assert "4.2 % above it by the second judge" in warnings({f"{policy}/second_toxic_fraction": 0.5})
    assert warnings({f"{policy}/second_toxic_fraction": 0.4}, facts={"reward.name": "length"}) == ""


def test_over_optimisation_and_nothing_to_recover() -> None:
    assert "over-optimised" in warnings({"overoptimisation/over_optimised": 1.0})
    assert "nothing to recover" in warnings({"recovered_fraction": None})


def test_a_tiny_scale() -> None:
    assert warnings({}, "scale=tiny,irl.seed=3") == "scale=tiny: there is nothing to learn from these numbers."


def test_a_warning_about_many_runs_is_one_and_says_of_how_many() -> None:
    runs = [run(seed, f"irl.seed={seed}", {**WHOLE, "refinetuned/empty_fraction": seed / 10}) for seed in range(4)]
    assert verdict.of_launch(runs).warnings == (
        "3 of 4 runs, the first: 10.0 % of the refinetuned's completions are empty.",
    )
    alike = [run(seed, f"scale=tiny,irl.seed={seed}", WHOLE) for seed in range(4)]
    assert verdict.of_launch(alike).warnings == ("scale=tiny: there is nothing to learn from these numbers.",)


def test_text_and_markdown_say_the_same() -> None:
    found = Verdict(("One.", "Two."), ("Careful.",))
    assert found.text() == "One. Two.\nWarning: Careful."
    assert found.markdown() == "One. Two.\n\n- **Warning:** Careful.\n"
    assert Verdict(("One.",)).markdown() == "One.\n"
