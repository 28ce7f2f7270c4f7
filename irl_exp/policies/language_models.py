"""Language models: building, loading and saving them, what they write and how probable it is to them.

Prompt and completion are tokenised apart and their token ids joined, always in this order: sampling, training,
log-probabilities and features see the same sequence. A completion's ids end with EOS where the policy ended it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import transformers
from numpy.typing import NDArray
from safetensors import SafetensorError

from irl_exp.config import POSITIONS, ModelConfig
from irl_exp.machinery.runtime import Device
from irl_exp.machinery.store import verify
from irl_exp.policies import adapters, bases, chat
from irl_exp.texts.messages import as_text

Ids = list[int]
Progress = Callable[[int, int], None]
Kept = Literal["bfloat16", "float32"]
"""How weights are kept in memory."""


UNOPENED = (OSError, ValueError, KeyError, UnpicklingError, SafetensorError)
"""What transformers raises where a folder or name is no model that can be opened as data."""


NO_LIMIT = 10**9
"""From here on what a tokenizer calls the longest text is none: it has not been told."""


class PolicyError(Exception):
    """A model or tokenizer that the chain cannot use, with the remedy."""


@dataclass(frozen=True)
class Completions:
    """n completions, each with its prompt, as text and as the token ids that the policy saw.

    Attributes:
        prompts, texts: (n,) strings. A text holds no special token and nothing after EOS.
        prompt_ids: (n,) lists of ids, special tokens that the tokenizer puts before a prompt included.
        completion_ids: (n,) lists of ids, EOS included where the completion ended by itself.
    """

    prompts: list[str]
    texts: list[str]
    prompt_ids: list[Ids]
    completion_ids: list[Ids]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: NDArray[Any] | slice | Sequence[int]) -> Completions:
        index = np.arange(len(self))[rows]
        return Completions(*([column[i] for i in index] for column in self._columns()))

    def __add__(self, other: Completions) -> Completions:
        return Completions(*(mine + theirs for mine, theirs in zip(self._columns(), other._columns(), strict=True)))

    def _columns(self) -> tuple[list[Any], ...]:
        return self.prompts, self.texts, self.prompt_ids, self.completion_ids

    def ended(self, *ends: int) -> NDArray[np.bool_]:
        """(n,) whether the policy ended the completion, with one of these tokens, rather than the limit."""
        return np.array([bool(ids) and ids[-1] in ends for ids in self.completion_ids])

    def frame(self) -> pd.DataFrame:
        """One row a completion."""
        names = ("prompt", "completion", "prompt_ids", "completion_ids")
        return pd.DataFrame(dict(zip(names, self._columns(), strict=True)))

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Completions:
        """The inverse of `frame`; other columns are ignored."""
        return cls(
            frame["prompt"].tolist(),
            frame["completion"].tolist(),
            [list(map(int, ids)) for ids in frame["prompt_ids"]],
            [list(map(int, ids)) for ids in frame["completion_ids"]],
        )


@dataclass
class Policy:
    """A causal language model with its tokenizer, on a device; or an encoder, which reads texts and writes none.

    Attributes:
        known: what the weights are called and kept in, where a chain with adapters has written it down.
        hears: asked for log-probabilities, it tells this of each batch and of what the model said of it, states of all
            layers included: who wants them too need not let it read the batch again.
    """

    model: Any
    tokenizer: Any
    device: Device
    known: bases.Base | None = None
    hears: Callable[[Completions, Any], None] | None = None

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: Device,
        *,
        revision: str | None = None,
        base: Policy | None = None,
        kept: Kept | None = None,
    ) -> Policy:
        """Open a folder or a name on the hub with AutoModelForCausalLM (an encoder with AutoModel).

        Weights are in float32; those that a chain with adapters wrote, in the dtype of its adapters, and the arithmetic
        too, on every device.

        Args:
            base: what an adapter was made for; policy and base then share the weights of the base.
            kept: the dtype of the weights: "bfloat16" to put adapters on them, "float32" to train all of them.

        Raises:
            ArtifactError: a file of an artifact is damaged.
            PolicyError: it cannot be opened, or its tokenizer has no EOS token.
        """
        folder = Path(source)
        verify(folder)
        try:
            below = bases.read(folder)
            if below and below.path:
                return base if base and base.is_in(folder) else cls._on_checkpoint(folder, below, device, kept)
            if adapters.is_adapter(folder):
                return cls._on(base, folder, below)
            policy = cls._opened(str(source), device, revision, kept or (below.dtype if below else "float32"))
            return policy.known_as(below, folder) if below else policy
        except (adapters.AdapterError, bases.BaseError) as error:
            raise PolicyError(str(error)) from error

    @classmethod
    def _opened(cls, source: str, device: Device, revision: str | None, kept: Kept) -> Policy:
        options = {"revision": revision, "trust_remote_code": False}
        try:
            # A checkpoint runs no code of its own here; with the default, transformers would ask whoever is there.
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
            config = transformers.AutoConfig.from_pretrained(source, **options)
            opened = transformers.AutoModelForCausalLM if writes(config) else transformers.AutoModel
            dtype = torch.bfloat16 if kept == "bfloat16" else torch.float32
            model = opened.from_pretrained(source, dtype=dtype, **options)
        except UNOPENED as error:
            raise PolicyError(f"{source}: no causal language model could be opened: {first_line(error)}") from error
        prepare_tokenizer(tokenizer, source)
        keep_ends(model, tokenizer)
        if kept == "bfloat16":
            _widen(model)
        return cls(model.to(device.name).eval(), tokenizer, device).computing_in(kept)

    @classmethod
    def _on_checkpoint(cls, folder: Path, below: bases.Base, device: Device, kept: Kept | None) -> Policy:
        """A reference policy that is a checkpoint elsewhere, with the adapter of sft in it if it has one."""
        policy = cls.load(below.place, replace(device, name="cpu"), kept=below.dtype)
        if adapters.is_adapter(folder):
            policy.model = adapters.merge(policy.model, folder)
        if kept == "float32":
            policy.model.float()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        prepare_tokenizer(tokenizer, str(folder))
        policy.model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
        keep_ends(policy.model, tokenizer)
        return cls(policy.model.to(device.name).eval(), tokenizer, device).known_as(below, folder)

    @classmethod
    def _on(cls, base: Policy | None, folder: Path, made_for: bases.Base | None) -> Policy:
        if base is None:
            raise PolicyError(f"{folder}: this is an adapter: it is opened on its base, as expert.path.")
        if made_for and base.known and made_for.fingerprint != base.known.fingerprint:
            raise PolicyError(adapters.another_base(folder, "its weights are others"))
        return cls(adapters.adapted(base.model, folder), base.tokenizer, base.device)

    def computing_in(self, dtype: Kept) -> Policy:
        """The same policy; weights in bf16 are computed with in bf16 on every device."""
        return replace(self, device=replace(self.device, precision="bf16")) if dtype == "bfloat16" else self

    def is_in(self, folder: Path) -> bool:
        """Whether these are the weights that a folder stands for."""
        return self.known is not None and self.known.fingerprint == bases.fingerprint(folder)

    def known_as(self, below: bases.Base, folder: Path) -> Policy:
        """The policy that a folder with a base.json stands for."""
        return replace(self.computing_in(below.dtype), known=below.of(folder))

    def beside(self) -> Policy:
        """A policy of the same weights, not copied, that can get an adapter of its own."""
        return replace(self, model=adapters.beside(self.model), hears=None)

    def save(self, folder: Path) -> None:
        """Weights as safetensors, tokenizer beside them."""
        # TRL and the trainer patch `forward` on the instance with a closure over their own state.
        self.model.__dict__.pop("forward", None)
        self.model.config.use_cache = True
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def save_trained(self, folder: Path) -> None:
        """All weights; or the adapter alone that was trained, with what names the policy below it."""
        if not adapters.is_adapted(self.model):
            self.save(folder)
            return
        assert self.known is not None
        adapters.save(self.model, folder, self.known.name)
        self.known.write(folder)

    def save_beside_weights(self, folder: Path) -> None:
        """All but the weights: architecture, tokenizer, what ends a completion."""
        self.model.config.save_pretrained(folder)
        self.model.generation_config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def eos(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a completion: EOS, and of a chat model the others that its checkpoint names."""
        named = self.model.generation_config.eos_token_id
        return tuple(dict.fromkeys([self.eos, *(named if isinstance(named, list) else [])]))

    @property
    def writes(self) -> bool:
        """Whether it gives probabilities to texts; an encoder does not."""
        return self.model.get_output_embeddings() is not None

    @property
    def chats(self) -> bool:
        """Whether prompts go through the chat template."""
        return self.tokenizer.chat_template is not None

    def ask_in(self, *, chat_template: bool) -> None:
        """Settle how prompts are put: by the chat template, whose end of a turn then ends a completion; or as text.

        Raises:
            PolicyError: there is no template, or it cannot be used.
        """
        if not chat_template:
            self.tokenizer.chat_template = None
            self.model.generation_config.eos_token_id = self.eos
            return
        if not self.chats:
            raise PolicyError("model.chat=true: the tokenizer has no chat template. Set model.chat=false.")
        try:
            end = chat.end_of_turn(self.tokenizer)
        except chat.ChatError as error:
            raise PolicyError(str(error)) from error
        if end is not None:
            others = self.ends
            self.tokenizer.eos_token = end
            self.model.generation_config.eos_token_id = list(dict.fromkeys([self.eos, *others]))

    def complete(self, prompts: Sequence[str], texts: Sequence[str]) -> Completions:
        """Completions from text that somebody else wrote; each is taken as ended."""
        if not len(texts):
            return Completions([], [], [], [])
        return Completions(list(prompts), list(texts), self.encode_prompts(prompts), self.encode_completions(texts))

    def encode_prompts(self, prompts: Sequence[str]) -> list[Ids]:
        """(n,) lists of ids, as TRL tokenises a prompt; of a chat model, of messages up to where the answer begins."""
        if self.chats:
            known = {prompt: chat.prompt_ids(self.tokenizer, prompt) for prompt in dict.fromkeys(prompts)}
            return [list(known[prompt]) for prompt in prompts]
        return list(self.tokenizer([as_text(prompt) for prompt in prompts])["input_ids"])

    def encode_completions(self, texts: Sequence[str]) -> list[Ids]:
        """(n,) lists of ids with EOS at the end.

        Raises:
            PolicyError: the tokenizer reads the end of a completion out of the text itself.
        """
        encoded = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        if wrong := next((text for text, ids in zip(texts, encoded, strict=True) if self.eos in ids), None):
            raise PolicyError(
                f"the tokenizer takes a part of {wrong!r} for its EOS token {self.tokenizer.eos_token!r}, so the rest "
                "would lie behind the end. Take such texts out of the data, or choose another model."
            )
        return [[*ids, self.eos] for ids in encoded]

    @property
    def longest(self) -> int | None:
        """Tokens that it reads at once, as far as its checkpoint says."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        limits = [limit for limit in (positions, self.tokenizer.model_max_length) if limit and limit < NO_LIMIT]
        return min(limits, default=None)

    def cut(self, completions: Completions) -> Completions:
        """The same texts with so many ids as fit: of a long prompt the beginning goes, of a long completion the end."""
        if self.longest is None:
            return completions
        kept = []
        for prompt, completion in zip(completions.prompt_ids, completions.completion_ids, strict=True):
            room = max(self.longest - len(completion), self.longest // 2)
            prompt = prompt if len(prompt) <= room else [*prompt[:1], *prompt[len(prompt) - room + 1 :]]
            kept.append((prompt, completion[: self.longest - len(prompt)]))
        return Completions(completions.prompts, completions.texts, *map(list, zip(*kept, strict=True)))


def downloaded(name: str, revision: str | None) -> Path:
    """The local copy of what the hub has under a name: settings, tokenizer and weights.

    Raises:
        PolicyError: there is no such name, or the hub is out of reach.
    """
    import huggingface_hub

    try:
        files = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "adapter_model.bin"]
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=files))
    except Exception as error:  # the client raises errors of several libraries, all of which mean the same here
        raise PolicyError(f"{name}: not on the hub, or out of reach: {first_line(error)}") from error


def prompts_as_read(folder: Path) -> Callable[[Sequence[Ids]], list[str]] | None:
    """Of a policy that is asked in chat: what prints ids of prompts with all markup; None for others."""
    if not (folder / "chat_template.jinja").is_file():
        return None
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return lambda ids: list(tokenizer.batch_decode([list(map(int, one)) for one in ids]))


def _widen(model: Any) -> None:
    """Keep the head of a model in bf16 in fp32, as logits are, and with it gains and biases, which are few.

    Their values stay those of bf16. A norm in bf16 could not read the states of embeddings that are the head too.
    """
    head = model.get_output_embeddings()
    for weight in model.parameters():
        if weight.ndim < 2 or (head is not None and weight is head.weight):
            weight.data = weight.data.float()


def keep_ends(model: Any, tokenizer: Any) -> None:
    """Leave of what a checkpoint says of generation the tokens that end a completion, of a chat model several.

    What a sampler does not set it takes from there: a repetition penalty or min_p would bend samples away from the
    log-probabilities.
    """
    ends = getattr(model.generation_config, "eos_token_id", None) if tokenizer.chat_template else None
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=ends if isinstance(ends, list) else tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )


def first_line(error: BaseException) -> str:
    """What an error says, without its further advice."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def writes(config: Any) -> bool:
    """Whether a checkpoint with this config is a language model, which writes, rather than an encoder."""
    found = config.architectures
    return not found or any(name in CAUSAL for name in found) or type(config) not in transformers.MODEL_MAPPING


CAUSAL = {
    name
    for names in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    for name in ([names] if isinstance(names, str) else names)
}
"""Classes of language models. A config alone does not say it: BERT's is in the mapping of language models too."""


def without_cache(model: Any) -> dict[str, bool]:
    """What a model is told that reads: else it keeps keys and values of all layers, as if it would write on."""
    return {"use_cache": False} if hasattr(model.config, "use_cache") else {}


def prepare_tokenizer(tokenizer: Any, source: str) -> None:
    """Make sure of an EOS token, pad with it if nothing else is there, and pad on the left for generation.

    Text that spells a special token ('<|endoftext|>') stays text. Set on the tokenizer and not given at each call,
    because TRL tokenises prompts itself.
    """
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
        tokenizer.eos_token = tokenizer.sep_token  # of an encoder: the end of a segment
    if tokenizer.eos_token_id is None:
        raise PolicyError(f"{source}: the tokenizer has no EOS token, so completions could not end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    tokenizer.split_special_tokens = True


def new_policy(config: ModelConfig, texts: Sequence[str], device: Device, *, seed: int) -> Policy:
    """A GPT-NeoX model (the Pythia architecture) with random weights and a byte-level BPE fitted on the texts."""
    tokenizer = _byte_level_bpe(config.vocabulary, texts)
    prepare_tokenizer(tokenizer, "the new model")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ends = {f"{name}_token_id": tokenizer.eos_token_id for name in ("bos", "eos")}
        ends["pad_token_id"] = tokenizer.pad_token_id
        model = transformers.GPTNeoXForCausalLM(new_architecture(config, vocab_size=len(tokenizer), **ends))
    return Policy(model.to(device.name), tokenizer, device)


def new_architecture(config: ModelConfig, **tokens: int) -> transformers.PretrainedConfig:
    """Of a new model; `tokens`: the size of its vocabulary and its special tokens."""
    return transformers.GPTNeoXConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.hidden_size,
        max_position_embeddings=POSITIONS,
        rotary_pct=0.25,
        tie_word_embeddings=False,
        **tokens,
    )


def _byte_level_bpe(size: int, texts: Sequence[str]) -> Any:
    import tokenizers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|padding|>",
        # A second clean-up of spaces would make decode(encode(text)) differ from text.
        clean_up_tokenization_spaces=False,
    )


def until_eos(ids: Ids, *ends: int) -> Ids:
    """The ids up to the first that ends a completion, which is kept."""
    return ids[: min((ids.index(end) + 1 for end in ends if end in ids), default=len(ids))]


def pad(sequences: Sequence[Ids], policy: Policy, *, side: str, device: str | None = None) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask, both (b, longest), padded on the given side; on the policy's device."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])[:, None]
    longest = int(lengths.max())
    place = torch.arange(longest)
    mask = place >= longest - lengths if side == "left" else place < lengths
    ids = torch.full(mask.shape, policy.tokenizer.pad_token_id)
    ids[mask] = torch.tensor(list(itertools.chain.from_iterable(sequences)), dtype=torch.long)
    device = device or policy.device.name
    return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}


READ_TOGETHER = 32
"""Completions of a batch at most, on a CPU. Measured on 6,800 of them, with a model of the default size on one thread:
as fast as any, and takes the least memory."""


def in_batches(completions: Completions, device: Device, *, rows: int = READ_TOGETHER) -> list[NDArray[np.int64]]:
    """Indices of the batches in which a model reads completions, as `by_length` makes them."""
    pairs = zip(completions.prompt_ids, completions.completion_ids, strict=True)
    return by_length([len(prompt) + len(completion) for prompt, completion in pairs], device, rows=rows)


def by_length(lengths: Sequence[int], device: Device, *, rows: int) -> list[NDArray[np.int64]]:
    """Indices of batches of texts of similar length, the shortest first: little padding.

    A batch has at most device.batch_tokens tokens, padding included, or one text that has more; on a CPU at most `rows`
    texts too, so that each of several threads has some. It follows from the lengths and these two numbers alone.
    """
    order = np.argsort(lengths, kind="stable")
    most = rows if device.is_cpu else len(order)
    batches: list[list[int]] = []
    for index in order:
        full = not batches or len(batches[-1]) >= most
        if full or (len(batches[-1]) + 1) * lengths[index] > device.batch_tokens:
            batches.append([])
        batches[-1].append(int(index))
    return [np.array(batch) for batch in batches]
