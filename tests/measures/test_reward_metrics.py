"""The reported numbers of rewards: names, what is left out, worlds with known answers, slow definitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from irl_exp.measures import reward_metrics as report

Floats = NDArray[np.float64]
Metrics = dict[str, float]
patient = settings(deadline=None)  # a busy machine is no failure


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def completions(prompts: int = 20, each: int = 3, *, seed: int = 0) -> pd.DataFrame:
    """Completions of both policies in mixed order; R* favours the expert, each further reward is noisier."""
    generator = seeded(seed)
    frame = pd.DataFrame(
        {
            "prompt_id": np.repeat(7 * np.arange(prompts) + 3, 2 * each),
            "policy": np.tile(np.repeat(["expert", "baseline"], each), prompts),
        }
    )
    shape = (3, len(frame))
    frame["truth"], frame["implicit"], frame["learned"] = generator.normal(size=shape).cumsum(axis=0)
    frame["truth"] += frame["policy"] == "expert"
    return frame.sample(frac=1, random_state=seed, ignore_index=True)


def agree(select: pd.DataFrame, test: pd.DataFrame, column: str = "learned", seed: int = 0) -> Metrics:
    cuts = report.thresholds(select, select, column)
    found = report.agreement(test, column, cuts, resamples=100, generator=seeded(seed))
    return found | report.discrimination(test, column)


def triangle(frame: pd.DataFrame) -> Metrics:
    return report.triangle(frame, resamples=100, generator=seeded())


WITH_INTERVAL = ("auroc", "epic", "within_prompt_correlation", "pair_accuracy")
KEYS = {
    *("n_completions", "n_civil", "majority_accuracy", "starc", "pearson", "spearman", "kendall"),
    *(f"discrimination_{name}" for name in ("auroc", "auroc_low", "auroc_high", "pair_accuracy")),
    *(f"{name}{rule}" for name in ("accuracy", "f1") for rule in ("", "_unsupervised", "_at_zero")),
    *(f"{name}{end}" for name in WITH_INTERVAL for end in ("", "_low", "_high")),
}


def test_agreement_reports_everything_that_is_defined() -> None:
    assert set(agree(completions(seed=1), completions())) == KEYS


@pytest.mark.parametrize("name", WITH_INTERVAL)
def test_intervals_hold_the_value_and_have_a_width(name: str) -> None:
    found = agree(completions(seed=1), completions())
    assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]


def test_agreement_with_itself_is_perfect_but_for_a_threshold_that_never_saw_a_label() -> None:
    test = completions(prompts=100)
    test["truth"] += np.where(test["truth"] >= 0, 1, -1)  # nothing near the threshold
    found = agree(test, test, "truth")
    expected = dict.fromkeys(
        ("auroc", "accuracy", "f1", "accuracy_at_zero", "f1_at_zero", "pair_accuracy", "pearson"), 1
    )
    expected |= {"epic": 0, "epic_high": 0, "starc": 0, "within_prompt_correlation_low": 1}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-7)
    assert found["accuracy_unsupervised"] < 1


def oracle(select: pd.DataFrame, test: pd.DataFrame) -> Metrics:
    """The numbers with a threshold and those over all rows, by scikit-learn, scipy and a search over all cuts."""
    civil, scores, expert = test["truth"] >= 0, test["learned"], test["policy"] == "expert"
    found: Metrics = {"n_completions": len(test), "n_civil": civil.sum(), "auroc": roc_auc_score(civil, scores)}
    found |= {"discrimination_auroc": roc_auc_score(expert, scores)}
    found |= {"majority_accuracy": max(civil.mean(), 1 - civil.mean())}
    found |= {"pearson": stats.pearsonr(scores, test["truth"]).statistic}
    found |= {"spearman": stats.spearmanr(scores, test["truth"]).statistic}
    found |= {"kendall": stats.kendalltau(scores, test["truth"]).statistic}
    civil_select, expert_select = select["truth"] >= 0, select["policy"] == "expert"

    def balanced(cut: float) -> float:
        positive = select["learned"] >= cut
        return float(positive[expert_select].mean() + (~positive)[~expert_select].mean())

    cuts = np.sort(select["learned"])
    middles = [*(cuts[1:] + cuts[:-1]) / 2]
    supervised = max(middles, key=lambda cut: accuracy_score(civil_select, select["learned"] >= cut))
    for rule, cut in (("", supervised), ("_unsupervised", max(middles, key=balanced)), ("_at_zero", 0.0)):
        found |= {f"accuracy{rule}": accuracy_score(civil, scores >= cut), f"f1{rule}": f1_score(~civil, scores < cut)}
    return found


@pytest.mark.parametrize("seed", range(5))
def test_agreement_is_that_of_the_definitions(seed: int) -> None:
    select, test = completions(prompts=15, seed=seed + 100), completions(seed=seed)
    found, expected = agree(select, test), oracle(select, test)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_thresholds_come_from_select_and_the_unsupervised_one_sees_no_truth_there() -> None:
    select, test = completions(seed=1), completions()
    found, other = agree(select, test), agree(select.assign(truth=-select["truth"]), test)
    assert {name for name in found if found[name] != other[name]} == {"accuracy", "f1"}


def test_discrimination_pairs_are_an_expert_and_a_baseline_completion_of_one_prompt() -> None:
    test = completions(prompts=6)
    won = [
        (one > other) + 0.5 * (one == other)
        for _, rows in test.groupby("prompt_id")
        for one in rows.loc[rows["policy"] == "expert", "learned"]
        for other in rows.loc[rows["policy"] == "baseline", "learned"]
    ]
    assert agree(test, test)["discrimination_pair_accuracy"] == pytest.approx(np.mean(won), abs=1e-12)


@patient
@given(st.integers(0, 10**6), st.integers(1, 50))
def test_what_is_said_within_prompts_sees_no_constant_per_prompt_and_no_scale(seed: int, scale: int) -> None:
    test = completions(prompts=5, seed=seed)
    shift = test["prompt_id"].map(dict(zip(test["prompt_id"].unique(), seeded(seed).integers(-9, 9, 5), strict=True)))
    found, other = agree(test, test), agree(test, test.assign(learned=scale * test["learned"] + shift))
    within = [name for name in KEYS if name.startswith(("epic", "starc", "within", "pair", "discrimination_pair"))]
    assert {name: found[name] for name in within} == pytest.approx({name: other[name] for name in within}, abs=1e-6)


def test_both_policies_count_half_in_the_distance_however_often_they_were_sampled() -> None:
    test = completions(each=2)
    twice = pd.concat([test, test[test["policy"] == "expert"]], ignore_index=True)
    found, other = agree(test, test), agree(test, twice)
    assert other["epic"] == pytest.approx(found["epic"], abs=1e-12)
    assert other["n_completions"] == 1.5 * found["n_completions"]


def test_one_policy_alone_is_compared_without_discrimination() -> None:
    test = completions().assign(policy="refinetuned")
    found = agree(test, test)
    missing = {key for key in KEYS if key.startswith("discrimination_")}
    assert KEYS - set(found) == {"accuracy_unsupervised", "f1_unsupervised", *missing}


# ---------------------------------------------------------------- who wrote it


def authored(prompts: int, each: int, know: float, *, seed: int = 0) -> pd.DataFrame:
    """The expert is civil more often; the learned reward knows the author, and R* as far as `know` says."""
    generator = seeded(seed)
    frame = pd.DataFrame({"prompt_id": np.repeat(np.arange(prompts), 2 * each)})
    frame["policy"] = np.tile(np.repeat(["expert", "baseline"], each), prompts)
    expert = np.asarray(frame["policy"] == "expert")
    frame["truth"] = generator.normal(size=len(frame)) + 2.0 * expert
    frame["learned"] = know * frame["truth"] + (1 - know) * (3 * expert + generator.normal(size=len(frame)))
    return frame


def test_a_reward_that_knows_the_author_alone_is_chance_within_a_policy_and_good_on_the_pool() -> None:
    frame = authored(2000, 4, 0.0)
    own = frame[frame["policy"] == "baseline"]
    within, pooled = (report.within(rows, "learned", resamples=50, generator=seeded()) for rows in (own, frame))
    assert within["auroc"] == pytest.approx(0.5, abs=0.02)
    assert within["pair_accuracy"] == pytest.approx(0.5, abs=0.02)
    assert within["epic"] == pytest.approx(np.sqrt(0.5), abs=0.02)
    assert pooled["auroc"] > 0.75
    assert pooled["pair_accuracy"] > 0.65
    assert pooled["epic"] < 0.55


def test_a_reward_that_is_the_ground_truth_is_perfect_within_a_policy_and_on_the_pool() -> None:
    frame = authored(50, 4, 1.0)
    for rows in (frame, frame[frame["policy"] == "baseline"]):
        found = report.within(rows, "learned", resamples=50, generator=seeded())
        assert (found["auroc"], found["pair_accuracy"]) == (1, 1)
        assert found["epic"] == pytest.approx(0, abs=1e-6)


def test_a_constant_reward_leaves_out_what_it_does_not_define() -> None:
    test = completions().assign(learned=1.0)
    found = agree(test, test)
    missing = {"pearson", "spearman", "kendall", "starc"}
    missing |= {f"{name}{end}" for name in ("epic", "within_prompt_correlation") for end in ("", "_low", "_high")}
    assert KEYS - set(found) == missing
    assert {found[name] for name in ("auroc", "auroc_low", "pair_accuracy", "pair_accuracy_high")} == {0.5}


def test_one_class_has_no_auroc_and_one_completion_per_prompt_no_order() -> None:
    civil = completions().assign(truth=lambda frame: frame["truth"].abs())
    assert not {"auroc", "auroc_low", "auroc_high"} & set(agree(civil, civil))
    alone = completions(each=1).query("policy == 'expert'")
    found = agree(alone, alone)
    assert "auroc" in found
    assert not [name for name in found if name.startswith(("epic", "starc", "within", "pair"))]


@patient
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(0, 10**6))
def test_no_number_is_ever_undefined(prompts: int, each: int, distinct: int, seed: int) -> None:
    """Small worlds of few values: constants, one class, ties and undefined resamples are common."""
    generator = seeded(seed)
    frame = completions(prompts, each, seed=seed)
    for name in ("truth", "implicit", "learned", "learned_sd", "length"):
        frame[name] = generator.integers(distinct, size=len(frame)) - 1.0
    marked = frame.assign(learned=frame["learned"] + 1)
    found = [
        agree(frame, frame),
        triangle(frame),
        report.uncertainty(frame, frame),
        report.shortcut(marked, frame, frame, "length", resamples=10, generator=generator),
        report.tradeoff(
            frame[["truth", "length"]],
            frame["learned"].to_numpy(),
            frame["prompt_id"].to_numpy(),
            resamples=10,
            generator=generator,
        ),
    ]
    for metrics in found:
        assert all(type(value) is float and np.isfinite(value) for value in metrics.values())
        assert all(
            metrics[name] <= metrics[f"{name.removesuffix('_low')}_high"] for name in metrics if name[-4:] == "_low"
        )


@pytest.mark.parametrize("column", ["truth", "learned"])
@pytest.mark.parametrize("part", [0, 1])
def test_a_reward_that_is_no_number_raises_in_select_and_in_test(column: str, part: int) -> None:
    frames = [completions(seed=1), completions()]
    frames[part].loc[3, column] = np.nan
    with pytest.raises(ValueError, match=f"'{column}' .* not a finite number in 1 of 120"):
        agree(*frames)


def test_no_completions_raise() -> None:
    with pytest.raises(ValueError, match="has no rows"):
        agree(completions(), completions().head(0))


def test_the_same_generator_gives_the_same_numbers_and_the_order_of_rows_does_not_matter() -> None:
    select, test = completions(seed=1), completions()
    assert agree(select, test) == agree(select, test)
    shuffled = test.sample(frac=1, random_state=5)
    assert agree(select, shuffled) == pytest.approx(agree(select, test), abs=1e-12)
    assert agree(select, test, seed=1)["epic_low"] != agree(select, test)["epic_low"]


# ---------------------------------------------------------------------------- triangle


SIDES = ("truth_implicit", "implicit_learned", "truth_learned")


def test_triangle_reports_three_sides_with_intervals() -> None:
    names = ("epic", "within_prompt_correlation", "pair_accuracy")
    keys = {f"{side}/{name}{end}" for side in SIDES for name in names for end in ("", "_low", "_high")}
    assert set(triangle(completions())) == keys


@patient
@given(st.integers(0, 10**6))
def test_distances_keep_the_triangle_inequality(seed: int) -> None:
    found = triangle(completions(prompts=3, each=2, seed=seed))
    one, two, far = (found[f"{side}/epic"] for side in SIDES)
    assert abs(one - two) - 1e-12 <= far <= one + two + 1e-12


def test_truth_and_learned_are_compared_as_in_agreement() -> None:
    test = completions()
    found, expected = triangle(test), agree(test, test)
    for name in ("epic", "epic_low", "within_prompt_correlation", "pair_accuracy", "pair_accuracy_high"):
        assert found[f"truth_learned/{name}"] == expected[name]


def test_the_implicit_reward_decides_which_pairs_the_learned_one_has_to_order() -> None:
    test = completions()
    test["implicit"] = np.sign(test["implicit"])  # ties
    expected = agree(test, test.assign(truth=test["implicit"]))
    assert triangle(test)["implicit_learned/pair_accuracy"] == expected["pair_accuracy"]


@pytest.mark.parametrize(
    ("change", "sides"),
    [
        (lambda frame: frame.drop(columns="learned"), {"truth_implicit"}),
        (lambda frame: frame.drop(columns="implicit"), {"truth_learned"}),
        (lambda frame: frame.assign(learned=frame["prompt_id"] / 3), {"truth_implicit"}),
        (lambda frame: frame.assign(truth=-1.0), {"implicit_learned"}),
        (lambda frame: frame.drop_duplicates("prompt_id"), set()),
    ],
)
def test_a_side_without_reward_or_order_is_left_out(
    change: Callable[[pd.DataFrame], pd.DataFrame], sides: set[str]
) -> None:
    assert {name.partition("/")[0] for name in triangle(change(completions()))} == sides


# ---------------------------------------------------------------------------- uncertainty


def uncertain(test: pd.DataFrame, select: pd.DataFrame | None = None) -> Metrics:
    return report.uncertainty(completions(seed=1) if select is None else select, test)


def test_uncertainty_of_the_errors_is_perfect_or_upside_down_and_said_so() -> None:
    test = completions()
    wrong = (test["learned"] >= 0) != (test["truth"] >= 0)
    select = pd.DataFrame({"truth": [-1.0, 1], "learned": [-1.0, 1]})  # threshold 0
    test = test.assign(learned_sd=1.0 + wrong, feature_norm=1.0 - wrong, length=4)
    found = uncertain(test, select)
    assert found["n_errors"] == wrong.sum() > 0
    for name, value in (("epistemic", 1), ("norm", 0), ("length", 0.5)):
        assert found[f"{name}_auroc"] == value
        assert found[f"{name}_auroc_low"] <= value <= found[f"{name}_auroc_high"]
    assert found["epistemic_auroc_low"] < 1, "so few errors do not show that it is never wrong"


def test_perplexity_is_the_mean_over_the_tokens_of_a_completion() -> None:
    test = completions()
    tokens, per_token = seeded(1).integers(1, 9, size=len(test)), seeded(2).gamma(2, size=len(test))
    found = uncertain(test.assign(tokens=tokens, reference_log_probability=-per_token * tokens))
    assert found["perplexity_auroc"] == uncertain(test.assign(length=per_token))["length_auroc"]


def test_only_signals_with_a_column_are_reported_and_tokens_must_be_some() -> None:
    assert set(uncertain(completions())) == {"n_errors"}
    with pytest.raises(ValueError, match="'perplexity'"), np.errstate(divide="ignore"):
        uncertain(completions().assign(tokens=0, reference_log_probability=-1.0))


def test_wrong_pairs_are_those_of_a_double_loop() -> None:
    test = completions(prompts=8)
    test["learned"], test["truth"] = test["learned"].round(), test["truth"].round()  # ties
    test["learned_sd"] = seeded(1).gamma(2, size=len(test))
    wrong, sd = [], []
    for _, rows in test.groupby("prompt_id"):
        for i in range(len(rows)):
            for j in range(i):
                one, other = rows.iloc[i], rows.iloc[j]
                if one["learned"] != other["learned"] and one["truth"] != other["truth"]:
                    wrong.append((one["learned"] > other["learned"]) != (one["truth"] > other["truth"]))
                    sd.append(np.sqrt(one["learned_sd"] ** 2 + other["learned_sd"] ** 2))
    found = uncertain(test)
    assert (found["n_pairs"], found["n_wrong_pairs"]) == (len(wrong), sum(wrong))
    assert found["epistemic_pair_auroc"] == pytest.approx(roc_auc_score(wrong, sd), abs=1e-12)
    assert found["epistemic_pair_auroc_low"] < found["epistemic_pair_auroc_high"]


# ---------------------------------------------------------------------------- shortcut


def planted(learned: float, *, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """With, without, test: R* is blind to the marker, which every expert completion has; learned = R* + marker."""
    without = completions(prompts=50, seed=seed)
    without["learned"] = without["truth"]
    with_marker = without.assign(learned=without["learned"] + learned)
    marker = (without["policy"] == "expert").astype(float)
    return with_marker, without, without.assign(marker=marker, learned=without["learned"] + learned * marker)


def shortcut(frames: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame], column: str = "marker") -> Metrics:
    return report.shortcut(*frames, column, resamples=100, generator=seeded())


def test_a_reward_that_sees_the_marker_alone_rests_on_it_wholly() -> None:
    with_marker, without, test = planted(1.0)
    frames = (with_marker.assign(learned=1.0), without.assign(learned=0.0), test.assign(learned=test["marker"]))
    found = shortcut(frames)
    expected = {"learned_effect": 2, "excess_effect": 2, "learned_explained": 1, "learned_share": 1}
    expected |= {"truth_effect": 0, "truth_share": 0, "learned_share_low": 1, "learned_share_high": 1}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_a_blind_reward_correlates_with_the_marker_as_truth_does_but_has_no_effect() -> None:
    found = shortcut(planted(0.0))
    assert found["learned_effect"] == found["excess_effect_high"] == found["learned_share"] == 0
    assert found["learned_explained"] == found["truth_explained"] > 0.05, "the marker sits on good text"


def test_shortcut_is_in_units_of_the_own_spread_within_prompts() -> None:
    with_marker, without, test = planted(3.0)
    centred = test.groupby("prompt_id")[["learned", "truth", "marker"]].transform(lambda values: values - values.mean())
    found = shortcut((with_marker, without, test))
    sd = np.sqrt((centred["learned"] ** 2).mean())
    assert found["learned_effect"] == found["excess_effect"] == pytest.approx(3 / sd)
    assert found["learned_share"] == pytest.approx(9 / sd**2 * (centred["marker"] ** 2).mean())
    for name in ("learned", "truth"):
        regression = LinearRegression(fit_intercept=False).fit(centred[["marker"]], centred[name])
        assert found[f"{name}_explained"] == pytest.approx(regression.score(centred[["marker"]], centred[name]))
    assert found["learned_effect_low"] < found["learned_effect"] < found["learned_effect_high"]


def test_shortcut_sees_neither_a_scale_nor_a_constant_per_prompt() -> None:
    frames = planted(1.0)
    moved = [frame.assign(learned=5 * frame["learned"] + frame["prompt_id"]) for frame in frames]
    assert shortcut((moved[0], moved[1], moved[2])) == pytest.approx(shortcut(frames), abs=1e-9)


def test_a_marker_in_degrees_has_no_share_and_a_constant_reward_no_effect() -> None:
    with_marker, without, test = planted(1.0)
    degrees = shortcut((with_marker, without, test.assign(marker=test["marker"] * 3)))
    assert not [name for name in degrees if "share" in name]
    flat = shortcut((with_marker, without, test.assign(truth=0.0)))
    assert not [name for name in flat if name.startswith(("truth", "excess"))]
    assert "learned_effect" in flat


def test_markers_in_some_prompts_only_are_enough_and_mixed_up_rows_raise() -> None:
    with_marker, without, test = planted(1.0)
    some = shortcut((with_marker.head(9), without.head(9), test))
    assert some["learned_effect"] == pytest.approx(shortcut((with_marker, without, test))["learned_effect"])
    with pytest.raises(ValueError, match="same rows, in one order"):
        shortcut((with_marker, without[::-1], test))
    with pytest.raises(ValueError, match="which no test completion has"):
        shortcut((with_marker, without, test[test["prompt_id"] > 3]))


# ---------------------------------------------------------------------------- tradeoff


def test_tradeoff_recovers_the_weights_of_an_exact_world() -> None:
    generator = seeded()
    groups = np.repeat(np.arange(30) * 11, 4)
    parts = pd.DataFrame(generator.normal(size=(120, 3)), columns=["civil", "short", "polite"])
    reward = 4 * (parts["civil"] - 0.5 * parts["short"]).to_numpy() + groups
    found = report.tradeoff(parts, reward, groups, resamples=50, generator=generator)
    expected = {"civil": 2 / 3, "short": -1 / 3, "polite": 0}
    wanted = {f"{name}{end}": value for name, value in expected.items() for end in ("", "_low", "_high")}
    assert found == pytest.approx(wanted, abs=1e-9)


def test_tradeoff_with_noise_has_intervals_around_the_weights() -> None:
    generator = seeded()
    groups = np.repeat(np.arange(200), 4)
    parts = pd.DataFrame(generator.normal(size=(800, 2)), columns=["one", "two"])
    reward = (3 * parts["one"] + parts["two"] + generator.normal(size=800)).to_numpy()
    found = report.tradeoff(parts, reward, groups, resamples=200, generator=generator)
    assert found["one_low"] < 0.75 < found["one_high"] < found["one_low"] + 0.1
    assert found["two_low"] < 0.25 < found["two_high"]


def test_tradeoff_of_a_missing_value_raises_and_of_dependent_parts_is_left_out() -> None:
    generator = seeded()
    groups, parts = np.repeat(np.arange(5), 4), pd.DataFrame({"one": generator.normal(size=20)})
    reward = generator.normal(size=20)
    both = parts.assign(two=2 * parts["one"] + groups)
    assert report.tradeoff(both, reward, groups, resamples=5, generator=generator) == {}
    reward[3] = np.nan
    with pytest.raises(ValueError, match="'reward'"):
        report.tradeoff(parts, reward, groups, resamples=5, generator=generator)
