"""What pooling does to a signal in one token, and to the norm of the features, as completions grow.

    python benchmarks/pooling.py                      a new model of the default size, random weights
    python benchmarks/pooling.py --policy FOLDER      a trained one, e.g. multirun/store/sft/DIGEST

Completions are random tokens; at one random place stands one of two tokens, each in half of them. A logistic
regression on standardised features, fitted on half of the completions, tells the two apart on the other half (AUROC).
`variance` is the mean variance of a feature over completions, relative to the shortest; it falls like 1/length where
tokens are independent. The last line is the correlation of |features| with length over all lengths. Nothing here is a
test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from irl_exp.config import FeaturesConfig, ModelConfig
from irl_exp.irl.features import Featurizer
from irl_exp.machinery.runtime import Device, prepare_process
from irl_exp.policies.language_models import Completions, Policy, new_policy
from irl_exp.texts.comments import write_comments

LENGTHS = (4, 8, 16, 32, 64, 128)
DEVICE = Device("cpu", "fp32", 1)


def marked(
    policy: Policy, length: int, n: int, generator: np.random.Generator
) -> tuple[Completions, NDArray[np.bool_]]:
    """n completions of random tokens, one of them that which tells the label; and the (n,) labels."""
    signs = generator.choice(np.arange(300, 500), size=2, replace=False)
    ids = generator.integers(500, len(policy.tokenizer), size=(n, length))
    label = generator.random(n) < 0.5
    ids[np.arange(n), generator.integers(length, size=n)] = signs[label.astype(int)]
    prompts = ["I think that"] * n
    return Completions(prompts, [""] * n, policy.encode_prompts(prompts), ids.tolist()), label


def auroc(features: NDArray[np.float32], label: NDArray[np.bool_]) -> float:
    half = len(features) // 2
    scaler = StandardScaler().fit(features[:half])
    probe = LogisticRegression(C=0.1, max_iter=2000).fit(scaler.transform(features[:half]), label[:half])
    return float(roc_auc_score(label[half:], probe.decision_function(scaler.transform(features[half:]))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, help="folder of a trained policy; without it weights are random")
    parser.add_argument("--n", type=int, default=1000, help="completions of each length, half of them for the fit")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of tokens, over which the AUROC is averaged")
    arguments = parser.parse_args()
    prepare_process()
    texts = [comment.prompt + comment.completion for comment in write_comments(2000, seed=0)]
    policy = (
        Policy.load(arguments.policy, DEVICE) if arguments.policy else new_policy(ModelConfig(), texts, DEVICE, seed=0)
    )
    poolings = {
        "mean": FeaturesConfig.model_validate({"hidden_state": {"layers": [-1], "pooling": "mean"}}),
        "last": FeaturesConfig.model_validate({"last_token": {"layers": [-1], "pooling": "last"}}),
    }
    norms: dict[str, list[NDArray[np.float64]]] = {name: [] for name in poolings}
    first: dict[str, float] = {}
    print(f"{'length':>6}" + "".join(f"{name + ' AUROC':>13}{'variance':>10}" for name in poolings))
    for length in LENGTHS:
        row = f"{length:>6}"
        for name, config in poolings.items():
            generator = np.random.default_rng(length)
            draws = [marked(policy, length, arguments.n, generator) for _ in range(arguments.repeats)]
            found = [Featurizer(config, policy).extract(completions) for completions, _ in draws]
            scores = [auroc(features, label) for features, (_, label) in zip(found, draws, strict=True)]
            variance = float(np.mean([features.var(axis=0).mean() for features in found]))
            norms[name].append(np.linalg.norm(np.concatenate(found), axis=1))
            row += f"{np.mean(scores):>13.3f}{variance / first.setdefault(name, variance):>10.3f}"
        print(row, flush=True)
    lengths = np.repeat(LENGTHS, arguments.n * arguments.repeats)
    for name, found_norms in norms.items():
        correlation = np.corrcoef(np.log(lengths), np.concatenate(found_norms))[0, 1]
        print(f"correlation of |{name}| with log length: {correlation:.2f}")


if __name__ == "__main__":
    main()
