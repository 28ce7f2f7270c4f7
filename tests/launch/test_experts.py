"""Audits of experts that are given: checkpoints, adapters, texts of two writers, and nulls; each on small models."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pandas as pd
import peft
import pytest
import small
import tokenizers
import torch
import transformers

from irl_exp.chain import build
from irl_exp.config import ConfigError
from irl_exp.launch import preflight
from irl_exp.launch.models import PreflightError
from irl_exp.launch.run import Job, run
from irl_exp.policies import adapters
from irl_exp.policies.language_models import Policy
from irl_exp.policies.sampling import sample
from irl_exp.report.runs import run_tables
from irl_exp.report.verdict import of_run
from irl_exp.stages import checkpoint
from irl_exp.texts.comments import write_comments
from irl_exp.texts.files import DataError

TEMPLATE = (
    "{% for one in messages %}<|im_start|>{{ one['role'] }}\n{{ one['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def moved(model: Any, seed: int = 3) -> Any:
    """A copy with other weights."""
    own, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in own.parameters():
            if weight.ndim == 2:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return own


def chat_tokenizer() -> Any:
    tokenizer = small.byte_level(eos="<|endoftext|>", pad="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def chat_model(folder: Path) -> Any:
    """A Llama that is asked in chat; its generation config has two ends, as published ones do."""
    tokenizer = chat_tokenizer()
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    config = small._llama_config(tokenizer)
    config.eos_token_id, config.max_position_embeddings = ends, 256
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    small._sharpen(model)
    model.save_pretrained(folder / "chat")
    moved(model).save_pretrained(folder / "chat_tuned")
    for name in ("chat", "chat_tuned"):
        tokenizer.save_pretrained(folder / name)
    return model


def encoder(folder: Path) -> None:
    """A BERT, whose tokenizer has no EOS."""
    tokenizer = small.byte_level(eos=None)
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"})
    ends = [("[CLS]", tokenizer.cls_token_id), ("[SEP]", tokenizer.sep_token_id)]
    tokenizer._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def adapter(model: Any, folder: Path, **options: Any) -> None:
    settings = peft.LoraConfig(r=4, target_modules="all-linear", **options)
    peft.get_peft_model(copy.deepcopy(model), settings).save_pretrained(folder)


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints in every format, prompts, and texts of two writers in every form."""
    folder = tmp_path_factory.mktemp("given")
    neox, llama = small.policy("neox"), small.policy("llama")
    neox.save(folder / "base")
    tuned = moved(neox.model)
    Policy(tuned, neox.tokenizer, neox.device).save(folder / "tuned")
    tuned.save_pretrained(folder / "sharded", max_shard_size="20KB")
    neox.tokenizer.save_pretrained(folder / "sharded")
    neox.model.save_pretrained(folder / "same", max_shard_size="20KB")
    neox.tokenizer.save_pretrained(folder / "same")
    adapter(neox.model, folder / "adapter", init_lora_weights=False)
    adapter(neox.model, folder / "untrained")
    adapter(llama.model, folder / "of_another", init_lora_weights=False)
    llama.save(folder / "another")
    chat_model(folder)
    encoder(folder / "encoder")
    comments = write_comments(400, seed=3)
    lines(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in sorted({one.prompt for one in comments})])
    texts: dict[str, dict[bool, list[str]]] = {}
    for one in comments:
        texts.setdefault(one.prompt, {}).setdefault(one.toxic, []).append(one.completion)
    pairs = [(prompt, both[False][0], both[True][0]) for prompt, both in texts.items() if len(both) == 2]
    writers = {True: "base", False: "tuned"}
    written = [
        {"prompt": prompt, "completion": text, "writer": writers[toxic]}
        for prompt, both in texts.items()
        for toxic, own in both.items()
        for text in own
    ]
    lines(folder / "written.jsonl", written)
    frame = pd.DataFrame(pairs, columns=["prompt", "chosen", "rejected"])
    frame.to_csv(folder / "pairs.csv", index=False)
    frame.to_parquet(folder / "pairs.parquet")
    lines(
        folder / "chat.jsonl",
        [
            {
                side: [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
                for side, text in (("chosen", chosen), ("rejected", rejected))
            }
            for prompt, chosen, rejected in pairs
        ],
    )
    return folder


def audited(folder: Path, *overrides: str) -> tuple[dict[str, float], Path, str]:
    """Metrics, run folder, and what is said of one run."""
    config = small.compose(f"store.dir={folder.parent / 'audits'}", *overrides)
    metrics = run(config, Job(0, "x", folder), lambda event: None)
    facts = {"reward.name": config.reward.name, "expert.name": config.expert.name}
    told = of_run(metrics, facts).text()
    return metrics, folder, "\n".join([told, *(table.markdown() for table in run_tables(metrics, facts))])


def of_checkpoint(given: Path, expert: str, *, base: str = "base") -> tuple[str, ...]:
    path, data = f"expert.path={given / expert}", f"data.path={given / 'prompts.jsonl'}"
    return "expert=checkpoint", path, f"model.path={given / base}", "model.tuned=true", "data=file", data, "reward=none"


def of_texts(given: Path, file: str, reader: str) -> tuple[str, ...]:
    return "expert=texts", f"expert.path={given / file}", f"model.path={given / reader}", "reward=none"


WRITERS = ("expert.is_expert=tuned", "expert.is_baseline=base")


def artifact(folder: Path, stage: str) -> Path:
    record = json.loads((folder / "config.json").read_text())
    return Path(record["store"]["dir"]) / stage / record["artifacts"][stage]


# ---------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_audited_without_a_ground_truth(given: Path, tmp_path: Path) -> None:
    metrics, folder, told = audited(tmp_path / "a", *of_checkpoint(given, "tuned"))
    assert {"irl/discrimination_auroc_low", "implicit/discrimination_auroc", "expert/kl"} <= metrics.keys()
    assert [key for key in metrics if "toxic" in key or ("reward_mean" in key and "learned" not in key)] == []
    assert not {"reward", "judge", "rlhf", "refinetune"} & set(
        json.loads((folder / "config.json").read_text())["artifacts"]
    )
    assert "There is no R* (reward=none)" in told
    assert f"AUROC {metrics['irl/discrimination_auroc']:.3f}" in told
    sharded, other, _ = audited(tmp_path / "b", *of_checkpoint(given, "sharded"))
    assert sharded == metrics
    frame = pd.read_parquet(artifact(folder, "demonstrations") / "demonstrations.parquet")
    assert frame[frame["part"] == "test"].notna().all(axis=None)
    assert pd.read_parquet(artifact(folder, "data") / "texts.parquet")["completion"].eq("").all()
    assert (artifact(other, "checkpoint") / "model.safetensors").exists()


def test_an_adapter_shares_the_weights_of_its_base_and_is_what_merging_gives(given: Path, tmp_path: Path) -> None:
    base = Policy.load(given / "base", small.DEVICE)
    expert = Policy.load(given / "adapter", small.DEVICE, base=base)
    own = {weight.data_ptr() for weight in expert.model.parameters()}
    assert {weight.data_ptr() for weight in base.model.parameters()} <= own
    merged = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), given / "adapter").merge_and_unload()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = base.model(input_ids=ids).logits
        assert torch.allclose(expert.model(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-4)
        assert not torch.allclose(expert.model(input_ids=ids).logits, before, atol=1e-2)
        assert torch.equal(base.model(input_ids=ids).logits, before)
    metrics, folder, _ = audited(tmp_path / "a", *of_checkpoint(given, "adapter"))
    assert metrics["expert/kl"] > 0
    assert not list(artifact(folder, "checkpoint").glob("model*"))


def test_the_implicit_reward_of_an_adapter_is_loaded_again(given: Path, tmp_path: Path) -> None:
    metrics, _, _ = audited(tmp_path / "a", *of_checkpoint(given, "adapter"), "irl=implicit", "expert.refinetune=true")
    assert metrics["irl/discrimination_auroc"] == metrics["implicit/discrimination_auroc"]
    assert {"refinetuned/kl", "refinetuned/learned_reward_mean"} <= metrics.keys()


@pytest.fixture
def hub(given: Path) -> Iterator[None]:
    """The cache of the hub as a download leaves it: tiny/base, tiny/tuned with two revisions, tiny/adapter."""
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    contents = {"base": ["base"], "tuned": ["another", "tuned"], "adapter": ["adapter"]}
    for name, folders in contents.items():
        place = cache / f"models--tiny--{name}"
        for number, folder in enumerate(folders):
            shutil.copytree(given / folder, place / "snapshots" / (str(number) * 40))
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(str(len(folders) - 1) * 40)
    yield
    for name in contents:
        shutil.rmtree(cache / f"models--tiny--{name}")


@pytest.mark.usefixtures("hub")
def test_names_on_the_hub_are_what_their_folders_are(given: Path, tmp_path: Path) -> None:
    data = ("model.tuned=true", "data=file", f"data.path={given / 'prompts.jsonl'}", "reward=none", "explain=none")
    of_hub = ("expert=checkpoint", "model.hub=tiny/base", *data)
    for number, expert in enumerate(("tuned", "adapter")):
        there, _, _ = audited(tmp_path / f"there{number}", *of_hub, f"expert.hub=tiny/{expert}")
        here, _, _ = audited(tmp_path / f"here{number}", *of_checkpoint(given, expert), "explain=none")
        assert there == here
    first = ("expert.hub=tiny/tuned", f"expert.revision={'0' * 40}")
    other, _, _ = audited(tmp_path / "other", *of_hub, *first)
    assert "implicit/discrimination_auroc" not in other, "the first revision has another tokenizer"


def test_another_tokenizer_leaves_log_probabilities_of_the_expert_out(given: Path, tmp_path: Path) -> None:
    metrics, folder, told = audited(tmp_path / "a", *of_checkpoint(given, "another"))
    assert {"irl/discrimination_auroc", "expert/nll", "reference/nll"} <= metrics.keys()
    assert not {"expert/kl", "implicit/discrimination_auroc"} & metrics.keys()
    assert "nats from the reference" not in told
    frame = pd.read_parquet(artifact(folder, "demonstrations") / "demonstrations.parquet")
    base = Policy.load(given / "base", small.DEVICE)
    for row in frame.itertuples():
        assert base.tokenizer.decode(row.completion_ids, skip_special_tokens=True) == row.completion


def test_an_external_judge_stands_beside_a_checkpoint(given: Path, tmp_path: Path, small_classifier: Path) -> None:
    judge = ("reward=roberta_toxicity", f"reward.path={small_classifier}")
    metrics, _, told = audited(tmp_path / "a", *of_checkpoint(given, "tuned")[:-1], *judge)
    assert {"irl/auroc", "irl/epic", "expert/toxic_fraction", "irl/discrimination_auroc"} & metrics.keys()
    assert "which judges from outside" in told


# ------------------------------------------------------------------------------------------------------ chat


def test_a_chat_model_is_asked_through_its_template(given: Path, tmp_path: Path) -> None:
    _, folder, _ = audited(tmp_path / "a", *of_checkpoint(given, "chat_tuned", base="chat"))
    samples = pd.read_csv(folder / "samples.csv")
    first = samples.iloc[0]
    assert first["prompt_read"] == f"<|im_start|>user\n{first['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    tokenizer = Policy.load(artifact(folder, "sft"), small.DEVICE).tokenizer
    assert tokenizer.eos_token == "<|im_end|>"
    frame = pd.read_parquet(artifact(folder, "demonstrations") / "demonstrations.parquet")
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert all(list(ids).count(start) == 2 for ids in frame["prompt_ids"])
    assert not frame["completion"].str.contains("<|im_end|>", regex=False).any()
    plain, folder, _ = audited(tmp_path / "b", *of_checkpoint(given, "chat_tuned", base="chat"), "model.chat=false")
    assert "prompt_read" not in pd.read_csv(folder / "samples.csv")
    assert plain["expert/kl"] > 0


def test_markup_in_a_message_stays_text(given: Path) -> None:
    policy = Policy.load(given / "chat", small.DEVICE)
    policy.ask_in(chat_template=True)
    plain, spelt = policy.encode_prompts(["Hello there", "Hello <|im_end|> there"])
    special = set(policy.tokenizer.all_special_ids)
    assert [one for one in plain if one in special] == [one for one in spelt if one in special]
    assert "Hello <|im_end|> there" in policy.tokenizer.decode(spelt)


def test_every_end_that_a_chat_model_names_ends_a_completion(given: Path, tmp_path: Path) -> None:
    policy = Policy.load(given / "chat", small.DEVICE)
    policy.ask_in(chat_template=True)
    policy.save(tmp_path / "kept")
    again = Policy.load(tmp_path / "kept", small.DEVICE)
    ends = again.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert again.ends == policy.ends == tuple(ends)
    written = sample(again, again.encode_prompts(["Hello"] * 400), max_new_tokens=40, batch_size=400, seed=0)
    last = [one.ids[-1] for one in written if len(one.ids) < 40]
    assert set(last) == set(ends)
    assert not [one for one in written if set(one.ids[:-1]) & set(ends)]
    policy.ask_in(chat_template=False)
    assert policy.ends == (policy.eos,)


@pytest.mark.slow
def test_rl_asks_a_chat_model_in_chat(given: Path, tmp_path: Path) -> None:
    data = ("data=file", f"data.path={given / 'prompts.jsonl'}", f"model.path={given / 'chat'}", "model.tuned=true")
    _, folder, _ = audited(tmp_path / "a", *data, "reward=length", "until=rlhf")
    way = pd.read_parquet(artifact(folder, "rlhf") / "trajectory.parquet")
    start = Policy.load(artifact(folder, "sft"), small.DEVICE).tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert all(list(ids).count(start) == 2 for ids in way["prompt_ids"])


# ----------------------------------------------------------------------------------------------------- texts


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("pairs.csv", "pairs.parquet")]


@pytest.mark.parametrize("file", ["written.jsonl", "chat.jsonl", *SLOW])
def test_texts_of_two_writers_are_read_by_an_encoder(given: Path, tmp_path: Path, file: str) -> None:
    named = WRITERS if file == "written.jsonl" else ()
    metrics, folder, told = audited(tmp_path / "a", *of_texts(given, file, "encoder"), *named)
    assert {"irl/discrimination_auroc", "expert/learned_reward_mean"} <= metrics.keys()
    assert not {"expert/kl", "expert/nll", "implicit/discrimination_auroc"} & metrics.keys()
    frame = pd.read_parquet(artifact(folder, "demonstrations") / "demonstrations.parquet")
    counts = frame.groupby(["prompt_id", "policy"]).size().unstack()
    assert (counts["expert"] == counts["baseline"]).all()
    assert frame["reference_log_probability"].isna().all()
    sides = [frame[frame["policy"] == name].reset_index(drop=True) for name in ("expert", "baseline")]
    assert sides[0][["prompt", "sample", "part"]].equals(sides[1][["prompt", "sample", "part"]])
    civil = {one.completion for one in write_comments(400, seed=3) if not one.toxic}
    assert set(sides[0]["completion"]) <= civil
    assert "The expert of the file writes" in told


def test_texts_are_read_by_a_language_model_too(given: Path, tmp_path: Path) -> None:
    metrics, folder, _ = audited(tmp_path / "a", *of_texts(given, "pairs.csv", "base"))
    assert {"expert/nll", "irl/discrimination_auroc"} <= metrics.keys()
    weights = transformers.AutoModelForCausalLM.from_pretrained(artifact(folder, "sft")).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in small.policy("neox").model.state_dict().items())


def test_of_unbalanced_writers_as_many_are_taken_as_the_other_has(given: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {number}", "completion": f" answer {writer} {place}", "writer": writer}
        for number in range(12)
        for writer, count in (("expert", 3), ("baseline", 1))
        for place in range(count)
    ]
    lines(tmp_path / "texts.jsonl", [*rows, {"prompt": "alone", "completion": " b", "writer": "expert"}])
    _, folder, _ = audited(
        tmp_path / "a", *of_texts(tmp_path, "texts.jsonl", "x")[:2], *of_texts(given, "", "base")[2:]
    )
    frame = pd.read_parquet(artifact(folder, "demonstrations") / "demonstrations.parquet")
    assert frame.groupby(["prompt", "policy"]).size().eq(1).all()
    assert frame["prompt"].nunique() == 12
    note = json.loads((artifact(folder, "demonstrations") / "manifest.json").read_text())["info"]["note"]
    assert "1 texts on prompts of one writer alone" in note
    assert "24 texts without a partner" in note


def test_dialogues_written_as_one_text_are_cut_before_the_last_answer(given: Path, tmp_path: Path) -> None:
    start = "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: How are you, number {}?\n\nAssistant:"
    rows = [{"chosen": f"{start.format(n)} fine {n}", "rejected": f"{start.format(n)} bad {n}"} for n in range(12)]
    lines(tmp_path / "hh.jsonl", rows)
    _, folder, _ = audited(tmp_path / "a", *of_texts(tmp_path, "hh.jsonl", "x")[:2], *of_texts(given, "", "base")[2:])
    frame = pd.read_parquet(artifact(folder, "demonstrations") / "demonstrations.parquet")
    assert set(frame["prompt"]) == {start.format(n) for n in range(12)}
    assert set(frame.loc[frame["policy"] == "expert", "completion"]) == {f" fine {n}" for n in range(12)}


# ----------------------------------------------------------------------------------------------------- nulls


def test_the_reference_itself_and_its_drift_are_nulls(given: Path, tmp_path: Path) -> None:
    reference = of_checkpoint(given, "tuned")[2:]
    itself, folder, told = audited(tmp_path / "a", "expert=itself", *reference)
    assert itself["expert/kl"] == 0
    frame = pd.read_parquet(artifact(folder, "demonstrations") / "demonstrations.parquet")
    sides = [frame.loc[frame["policy"] == name, "completion"].tolist() for name in ("expert", "baseline")]
    assert np.mean([mine == other for mine, other in zip(*sides, strict=True)]) < 0.5
    assert "a null" in told
    further, _, _ = audited(tmp_path / "b", "expert=further", "expert.train_on=own", "expert.steps=3", *reference)
    assert further["expert/kl"] > 0


# ----------------------------------------------------------------------------------------- what is refused


def refused(*overrides: str) -> str:
    """What is said before any work."""
    with pytest.raises((ConfigError, PreflightError, DataError)) as caught:
        checked(*overrides)
    return str(caught.value)


def checked(*overrides: str) -> None:
    for step in build(small.compose(*overrides), small.DEVICE).values():
        preflight.check(step)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["expert=checkpoint"], "set expert.path to the folder of the tuned checkpoint, or expert.hub"),
        (["expert=checkpoint", "expert.path=nowhere"], "expert.path=nowhere: there is no such file or folder"),
        (["expert=checkpoint", "expert.path=."], "neither config.json (a model) nor adapter_config.json"),
        (["expert=checkpoint", "expert.hub=a/b"], "model.tuned=true"),
        (["reward=none"], "expert=rlhf is trained on an R*"),
        (["reward=none", "expert=itself", "irl=probe"], "irl=probe is fitted on R*"),
        (["expert=itself", "until=refinetune"], "no policy is trained on the reward of expert=itself"),
        (["expert=itself", "shortcut=marker", "shortcut.where=ground_truth"], "shortcut.where=ground_truth"),
        (["data=expert"], "data=expert are the prompts of expert=texts"),
        (["expert=texts"], "expert.path: this option must be set"),
        (["expert=texts", "expert.path=conf.jsonl"], "expert=texts: set model.path (or model.hub)"),
        (["model.chat=true"], "chat=true needs a checkpoint"),
    ],
)
def test_wrong_combinations_are_refused_with_the_remedy(tmp_path: Path, overrides: list[str], told: str) -> None:
    lines(tmp_path / "conf.jsonl", [{"prompt": "a"}])
    assert told in refused(*overrides)


@pytest.mark.parametrize(
    ("expert", "base", "told"),
    [
        ("base", "base", "the expert is the base itself"),
        ("same", "base", "take expert=itself"),
        ("of_another", "base", "this adapter was made for"),
        ("chat", "base", ""),
        ("encoder", "base", "is an encoder, which writes nothing"),
        ("adapter", "another", "Set model.path to that base"),
    ],
)
def test_an_expert_that_does_not_fit_is_refused(given: Path, expert: str, base: str, told: str) -> None:
    if told:
        assert told in refused(*of_checkpoint(given, expert, base=base))
    else:
        checked(*of_checkpoint(given, expert, base=base))


def test_another_end_of_a_completion_is_refused(given: Path, tmp_path: Path) -> None:
    base = Policy.load(given / "chat", small.DEVICE)
    base.model.save_pretrained(tmp_path / "plain")
    tokenizer = chat_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token = None, "<|im_start|>"
    tokenizer.save_pretrained(tmp_path / "plain")
    said = refused(*of_checkpoint(given, str(tmp_path / "plain"), base="chat_tuned"), "model.chat=false")
    assert "it ends a completion with '<|im_start|>', the base with '<|endoftext|>'" in said


def test_a_part_of_the_weights_that_is_missing_is_named(given: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(given / "sharded", tmp_path / "sharded"))
    (folder / "model-00002-of-00004.safetensors").unlink()
    assert "of its weights model-00002-of-00004.safetensors is missing" in refused(*of_checkpoint(given, str(folder)))


def test_an_adapter_that_changes_nothing_is_refused(given: Path, tmp_path: Path) -> None:
    config = small.compose(*of_checkpoint(given, "untrained"))
    with pytest.raises(Exception, match="expert=itself"):
        checkpoint.run(
            config.expert, reference=given / "base", model=config.model, context=small.context(tmp_path / "x")
        )  # type: ignore[arg-type]
    assert adapters.settings_of(given / "untrained")["peft_type"] == "LORA"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"prompt": "a", "completion": "b"}], "needs the columns 'prompt', 'completion' and 'writer'"),
        ([{"completion": "b", "writer": "expert"}], "there is no column 'prompt'"),
        ([{"prompt": "a", "completion": "b", "writer": "me"}], "expert.is_expert=expert: nobody of that name"),
        ([{"chosen": "a", "rejected": "b"}], "line 1: chosen and rejected have no prompt in them"),
        ([{"prompt": "a", "chosen": "a", "rejected": 5}], "line 1: column 'rejected' holds a int"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "1 distinct prompts: give 10 or more"),
    ],
)
def test_texts_that_cannot_be_read_are_named(given: Path, tmp_path: Path, rows: Any, told: str) -> None:
    lines(tmp_path / "texts.jsonl", rows)
    assert told in refused(*of_texts(tmp_path, "texts.jsonl", "x")[:2], *of_texts(given, "", "base")[2:])


def test_a_list_of_prompts_trains_nothing(given: Path) -> None:
    data = ("data=file", f"data.path={given / 'prompts.jsonl'}")
    assert "sft trains on completions" in refused(*data, "reward=length")
    assert "set expert.train_on=own" in refused(*of_checkpoint(given, "tuned")[2:], "expert=further")
    assert "a list of prompts has none" in refused(*data, "reward=weighted")
