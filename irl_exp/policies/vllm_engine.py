"""What a policy writes by vLLM: from its full distribution at temperature 1, as sampling.py.

The engine is a process of its own: vLLM changes classes of transformers, the generators and the threads of the process
that it is in. It has a copy of the weights, in the precision of the device, and stays; policies of one shape share it.
Before a policy writes, the engine gets its weights as they are then, so RL can use it, too. What it says of
log-probabilities is not asked: they are read again (likelihood.py).
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from irl_exp.policies import adapters
from irl_exp.policies.language_models import Ids, Policy, PolicyError, Progress, first_line
from irl_exp.policies.logits import itself, predictions

QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # it is in a process already
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # jobs beside this one have the other cores
}
"""Settings of vLLM that have no argument."""
NOT_OF_SHAPE = ("_name_or_path", "dtype", "transformers_version", "use_cache")
"""In config.json, and not the same of all policies of one shape."""
SHORTEST = 512
"""Tokens of a sequence that an engine is made for at least, so that it need not be made again for longer prompts."""
AS_IT_SPEAKS = {"fp32": 0.01, "bf16": 0.5}
"""Nats a token, as a mean, by which the two may differ in what they say of a text. In bf16 up to 0.32 were seen."""
SAID = 8
"""Tokens on which that is looked at."""
PATIENCE = 10.0
"""Seconds that it gets to end."""


@dataclass(frozen=True)
class _Shape:
    """What an engine is made for: an architecture (config.json), numbers, the longest sequence, bytes of its cache."""

    architecture: str
    dtype: str
    tokens: int
    cache: int

    @classmethod
    def of(cls, policy: Policy, tokens: int) -> _Shape:
        """An engine for this policy, and for sequences of so many tokens."""
        assert policy.device.vllm
        model = itself(policy.model)
        config = {name: value for name, value in model.config.to_dict().items() if name not in NOT_OF_SHAPE}
        config["architectures"] = [type(model).__name__]
        longest = max(SHORTEST, 1 << (tokens - 1).bit_length())
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or longest
        dtype = "bfloat16" if policy.device.bf16 else "float32"
        cache = round(policy.device.vllm.cache * 2**30)
        return cls(json.dumps(config, sort_keys=True), dtype, min(longest, positions), cache)


REMEDY = "Set sampler=own."


class OtherWeightsError(PolicyError):
    """vLLM does not say of a text what the policy says."""


_engine: _Engine | None = None


def write(
    policy: Policy,
    prompt_ids: Sequence[Ids],
    *,
    max_new_tokens: int,
    seed: int,
    greedy: bool = False,
    progress: Progress = lambda done, total: None,
) -> list[Ids]:
    """One continuation of each prompt, its EOS kept where it ended by itself; each has a stream of its own.

    Raises:
        PolicyError: vLLM cannot run the model, or be given its weights.
    """
    global _engine
    shape = _Shape.of(policy, max(map(len, prompt_ids)) + max_new_tokens)
    if _engine is None or _engine.shape != shape:
        close()
        _engine = _Engine(shape)
    options = {
        "temperature": 0.0 if greedy else 1.0,
        "max_tokens": max_new_tokens,
        "stop_token_ids": list(policy.ends),
        "ignore_eos": True,  # what ends a completion, the policy says
        "detokenize": False,
    }
    streams = np.random.SeedSequence(seed).generate_state(len(prompt_ids)).tolist()
    try:
        _engine.take(policy)
        _engine.check(policy, prompt_ids[0])
        found: list[Ids] = _engine.ask("write", ([list(ids) for ids in prompt_ids], streams, options), progress)
    except BaseException:
        close()  # it may still be at work for nobody
        raise
    return found


def close() -> None:
    """End the engine of this process, if it has one, and give its memory back."""
    global _engine
    if _engine is not None:
        _engine.close()
    _engine = None


class _Engine:
    """This side of the pipe."""

    def __init__(self, shape: _Shape) -> None:
        self.shape = shape
        self._folder = tempfile.TemporaryDirectory(prefix="irl_exp_vllm_")
        self._place = Path(self._folder.name)
        (self._place / "config.json").write_text(shape.architecture, encoding="utf-8")
        processes = torch.multiprocessing.get_context("spawn")
        self._end, other = processes.Pipe()
        self._process = processes.Process(target=_serve, args=(other, self._place, shape), daemon=True)
        self._process.start()
        other.close()
        try:
            self._hear("vLLM cannot run this model")
        except BaseException:
            self.close()
            raise

    def take(self, policy: Policy) -> None:
        """The weights of a policy, as they are now. Those of a GPU are not copied on the way."""
        try:
            weights = _as_saved(policy)
        except adapters.AdapterError as error:
            raise _refused(str(error)) from error
        if policy.device.is_cpu:
            path = self._place / "weights.safetensors"
            save_file({name: weight.contiguous() for name, weight in weights.items()}, path)
            self.ask("load", path)
            path.unlink()
        else:
            self.ask("take", weights)

    def check(self, policy: Policy, prompt: Ids) -> None:
        """That it speaks as the policy does: weights that went astray would show in nothing but the texts."""
        ids, values = self.ask("say", list(prompt))
        with policy.device.inference():
            inputs = torch.tensor([[*prompt, *ids]], device=policy.device.name)
            states, head = predictions(policy, len(ids) + 1, input_ids=inputs)
            own = head(states[0, :-1]).log_softmax(-1).gather(-1, inputs[0, -len(ids) :, None])[:, 0]
        off = float((own.cpu() - torch.tensor(values)).abs().mean())
        if not off < AS_IT_SPEAKS["bf16" if policy.device.bf16 else "fp32"]:
            name = type(itself(policy.model)).__name__
            raise OtherWeightsError(
                f"sampler=vllm: vLLM is {off:.2g} nats a token off what {name} says itself. {REMEDY}"
            )

    def ask(self, what: str, message: Any, progress: Progress = lambda done, total: None) -> Any:
        """Have something done, and wait for it."""
        try:
            self._end.send((what, message))
        except OSError:
            raise self._ended() from None
        return self._hear("vLLM failed", progress)

    def _hear(self, failed: str, progress: Progress = lambda done, total: None) -> Any:
        while True:
            try:
                kind, message = self._end.recv()
            except (EOFError, OSError):
                raise self._ended() from None
            if kind == "failed":
                raise _refused(f"{failed}: {message}")
            if kind == "done":
                return message
            progress(*message)

    def _ended(self) -> PolicyError:
        """What its process left behind."""
        self._process.join(PATIENCE)
        log = self._place / "log"
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
        last = f": {said[-1]}" if said else ""
        return _refused(f"vLLM's process ended with exit code {self._process.exitcode}{last}")

    def close(self) -> None:
        """End the process."""
        self._end.close()
        self._process.terminate()
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._folder.cleanup()


def _refused(reason: str) -> PolicyError:
    return PolicyError(f"sampler=vllm: {reason}. {REMEDY}")


def _as_saved(policy: Policy) -> dict[str, torch.Tensor]:
    """Weights under the names that they have in files, which vLLM reads; tied ones once, as there."""
    from transformers.core_model_loading import revert_weight_conversion

    model = itself(policy.model)
    own = adapters.merged(model) if adapters.is_adapted(model) else model.state_dict()
    found: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, weight in own.items():
        if (place := (weight.data_ptr(), weight.shape)) not in seen:
            seen.add(place)
            found[name] = weight.detach()
    saved: dict[str, torch.Tensor] = revert_weight_conversion(model, found)
    return saved


# ------------------------------------------------------------------------------------------- its own process


def _serve(end: Connection, folder: Path, shape: _Shape) -> None:
    """Do what is asked until nobody is at the other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: who waits says what it means
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(QUIET)
    does: dict[str, Callable[[Any], Any]] = {}

    def answer(what: Callable[[], Any]) -> None:
        try:
            end.send(("done", what()))
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:
            end.send(("failed", first_line(error)))

    def start() -> None:
        llm = _opened(folder, shape)
        does["write"] = lambda asked: _written(llm, *asked, tell=lambda *done: end.send(("progress", done)))
        does["say"] = lambda prompt: _said(llm, prompt)
        does["load"] = lambda path: _reload(llm, load_file(path))
        does["take"] = lambda weights: _reload(llm, weights)

    answer(start)
    while True:
        try:
            what, message = end.recv()
            answer(lambda: does[what](message))  # noqa: B023
            del message
        except (EOFError, BrokenPipeError):
            return


def _opened(folder: Path, shape: _Shape) -> Any:
    import vllm

    return vllm.LLM(
        model=str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        generation_config="vllm",  # nobody's top-k or penalties
        dtype=shape.dtype,
        max_model_len=shape.tokens,
        kv_cache_memory_bytes=shape.cache,
        gpu_memory_utilization=0.01,  # it is asked for first, and then the cache is what is said in bytes
        enforce_eager=True,
        trust_remote_code=False,
        disable_log_stats=True,
    )


def _reload(llm: Any, weights: dict[str, torch.Tensor]) -> None:
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
    llm.reset_prefix_cache()


def _said(llm: Any, prompt: Ids) -> tuple[Ids, list[float]]:
    """The likeliest continuation, and the log-probability of each of its tokens."""
    import vllm

    options = vllm.SamplingParams(temperature=0.0, max_tokens=SAID, logprobs=0, ignore_eos=True, detokenize=False)
    (found,) = llm.generate([{"prompt_token_ids": prompt}], options, use_tqdm=False)[0].outputs
    ids = list(found.token_ids)
    return ids, [values[token].logprob for token, values in zip(ids, found.logprobs, strict=True)]


def _written(
    llm: Any, prompts: list[Ids], streams: list[int], options: dict[str, Any], *, tell: Callable[[int, int], None]
) -> list[Ids]:
    import vllm

    found: dict[int, Ids] = {}
    last = vllm.sampling_params.RequestOutputKind.FINAL_ONLY
    for row, (ids, stream) in enumerate(zip(prompts, streams, strict=True)):
        request = vllm.SamplingParams(seed=stream, output_kind=last, **options)
        llm.llm_engine.add_request(str(row), {"prompt_token_ids": ids}, request)
    while llm.llm_engine.has_unfinished_requests():
        ended = llm.llm_engine.step()
        found |= {int(one.request_id): list(one.outputs[0].token_ids) for one in ended}
        if ended:
            tell(len(found), len(prompts))
    return [found[row] for row in range(len(prompts))]
