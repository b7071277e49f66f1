"""The transformers teacher: any causal language model, by folder or hub id.

A seed's params hold the prompt: ``prompt_ids`` (a list of token ids), or ``prompt``, a text or a list of messages
({role, content}), which goes through the tokenizer's chat template where it has one.

A labeller (option `labeller`, ``module:function``) says what a completion did::

    def label(request, prompt_ids, completion_ids) -> tuple[str | None, Mapping[str, int | float | str]]
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...catalogs.errors import DistdataError
from ...catalogs.hashing import bytes_hash, content_hash, token_uniforms
from ...catalogs.kv_cache import cache_name, keeps_keys
from ...catalogs.protocol import Draw, Failure, Request, TeacherInfo, TokenSpec
from .model_source import check_commit, folder_hash
from .python import load_object
from .token_records import Form, LawRecorder, ProbabilityRule, choose_token, token_draw

if TYPE_CHECKING:
    import torch

Labeller = Callable[[Request, NDArray[np.int64], NDArray[np.int64]], tuple[str | None, Mapping[str, Any]]]
WHAT = "transformers teacher"


class TransformersTeacher:
    """Sample a causal language model, its tokens chosen by each request's own uniforms (`hashing.token_uniforms`).

    Options:
        path: a folder written by `save_pretrained`, or a hub id ``org/name``.
        revision: the commit of a hub id, 40 hex digits; a branch or tag could move, and is refused.
        probabilities, n_counts, head: what is stored of the law at every token (`token_records.ProbabilityRule`).
        temperature, top_p: how tokens are chosen; log-probabilities and stored laws are those at 1 all the same.
        max_new_tokens: where a completion that has not ended is cut off.
        end_ids: token ids that end a completion; default: the model's own.
        chat: False gives a text prompt to the tokenizer as it is, without its chat template.
        labeller, outcomes: what labels a completion, and the labels it can give.
        device, dtype: where and in what precision it runs (default: as saved); only the CPU promises equal bytes.
        trust_remote_code: run code that lies in the folder or repository.
        project_dir: where a labeller beside distdata.toml lies; set by the registry.
    """

    def __init__(
        self,
        *,
        path: str,
        revision: str | None = None,
        probabilities: Form = "none",
        n_counts: int = 16,
        head: int = 8,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
        end_ids: Sequence[int] | None = None,
        chat: bool = True,
        labeller: str | None = None,
        outcomes: Sequence[str] = (),
        device: str = "cpu",
        dtype: str | None = None,
        trust_remote_code: bool = False,
        usd_per_gpuh: float = 2.0,
        id: str | None = None,
        version: str = "1",
        project_dir: str = ".",
    ) -> None:
        self._folder = Path(path).expanduser() if Path(path).expanduser().is_dir() else None
        if self._folder is None:
            check_commit(WHAT, path, revision)
        elif not (self._folder / "config.json").is_file():
            raise DistdataError(f"{path}: no config.json, so no transformers model. Save one with save_pretrained.")
        _check_number("temperature", temperature, 0.0, None)
        _check_number("top_p", top_p, 0.0, 1.0)
        if type(max_new_tokens) is not int or max_new_tokens < 1:
            raise DistdataError(f"{WHAT}: max_new_tokens is {max_new_tokens!r}; it must be a whole number from 1.")
        self._rule = ProbabilityRule(form=probabilities, n=n_counts, head=head)
        self._path, self._revision, self._trust = path, revision, trust_remote_code
        self._temperature, self._top_p, self._max_new_tokens = float(temperature), float(top_p), max_new_tokens
        self._end_ids, self._chat = None if end_ids is None else tuple(end_ids), chat
        self._labeller_path, self._project_dir = labeller, Path(project_dir)
        self._outcomes, self._usd_per_gpuh = tuple(outcomes), usd_per_gpuh
        self._device, self._dtype = device, dtype
        self._id, self._version = id or Path(path).name, version
        self._model: Any = None

    @functools.cached_property
    def _labeller(self) -> Labeller | None:
        if self._labeller_path is None:
            return None
        found: Labeller = load_object(self._labeller_path, self._project_dir, what="teacher.options.labeller")
        return found

    @functools.cached_property
    def _content_hash(self) -> str:
        return content_hash(
            {
                "source": folder_hash(self._folder) if self._folder else [self._path, self._revision],
                "choice": [self._temperature, self._top_p, self._max_new_tokens, self._end_ids, self._chat],
                "labeller": [self._labeller_path, self._labeller and _source_hash(self._labeller), self._outcomes],
                "record": [self._rule.facts(), self._device, self._dtype],
                "versions": _versions(),
            }
        )

    def describe(self) -> TeacherInfo:
        """Say who this is; hashes every file of the folder once (about 1 GB/s), loads no model."""
        return TeacherInfo(
            id=self._id,
            version=self._version,
            content_hash=self._content_hash,
            kind=self._rule.kind,
            usd_per_gpuh=self._usd_per_gpuh,
            reproducible="exact" if self._device == "cpu" else "tolerance",
            joint_batches=True,
            members=self._rule.specs(_vocabulary_size(self._folder)),
            outcomes=self._outcomes,
        )

    def load(self) -> Any:
        """Load the model on first use and return it; prompts, and records without probabilities, do without it.

        Raises:
            DistdataError: it can't be loaded as a causal language model.
        """
        if self._model is None:
            self._model = self._loaded()
        return self._model

    def vocabulary(self) -> TokenSpec:
        """Say how many ids the model has and which end a completion."""
        return TokenSpec(
            size=self._about.size,
            end_ids=self._about.ends,
            max_new_tokens=self._max_new_tokens,
            tokenizer_hash=self._tokenizer_hash,
        )

    @functools.cached_property
    def _tokenizer_hash(self) -> str:
        if self._folder is None:
            return content_hash([self._path, self._revision])
        file = self._folder / "tokenizer.json"
        if file.is_file():
            return bytes_hash([file.read_bytes()])
        return content_hash(["ids", _vocabulary_size(self._folder)])

    def prompts(self, requests: Sequence[Request]) -> list[NDArray[np.int64]]:
        """Return the token ids that each request starts from.

        Raises ValueError for a request without a prompt, or one that leaves no room for a completion.
        """
        return [self._prompt(r) for r in requests]

    def sample(self, requests: Sequence[Request]) -> Iterator[Draw | Failure]:
        """Answer one micro-batch as one padded batch; requests without a usable prompt are Failures."""
        good, prompts = [], []
        for request in requests:
            try:
                prompts.append(self._prompt(request))
                good.append(request)
            except ValueError as e:
                yield Failure(seed_id=request.seed_id, k=request.k, kind="invalid", reason=str(e))
        if good:
            completions, log_probs, recorders = self._generate(good, prompts)
            yield from self._records(good, prompts, completions, log_probs, recorders)

    def score(self, requests: Sequence[Request], completions: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Return the log-probability of every token of each completion, float32 [T] each, nats."""
        laws = self._laws(self.prompts(requests), completions)
        return [law[np.arange(len(c)), c].astype(np.float32) for law, c in zip(laws, completions, strict=True)]

    def record(
        self,
        requests: Sequence[Request],
        completions: Sequence[NDArray[np.int64]],
        log_probs: Sequence[NDArray[np.float32]],
    ) -> Iterable[Draw | Failure]:
        """Make records of completions, this model's or a student's; the stored probabilities are this model's."""
        prompts = self.prompts(requests)
        recorders = [LawRecorder(self._rule, r.rng_seed) for r in requests]
        if self._rule.form != "none":
            for recorder, laws in zip(recorders, self._laws(prompts, completions), strict=True):
                recorder.add(laws)
        return self._records(requests, prompts, completions, log_probs, recorders)

    def _records(
        self,
        requests: Sequence[Request],
        prompts: Sequence[NDArray[np.int64]],
        completions: Sequence[NDArray[np.int64]],
        log_probs: Sequence[NDArray[np.float32]],
        recorders: Sequence[LawRecorder],
    ) -> Iterator[Draw | Failure]:
        for r, prompt, completion, own, recorder in zip(
            requests, prompts, completions, log_probs, recorders, strict=True
        ):
            try:
                outcome, checks = self._labeller(r, prompt, completion) if self._labeller else (None, {})
            except ValueError as e:
                yield Failure(seed_id=r.seed_id, k=r.k, kind="invalid", reason=f"{self._labeller_path}: {e}")
                continue
            yield token_draw(
                r,
                prompt,
                completion,
                own,
                messages=self._messages(r, prompt, completion),
                tokenizer_hash=self._tokenizer_hash,
                temperature=self._temperature,
                top_p=self._top_p,
                outcome=outcome,
                checks=checks,
                rule=self._rule,
                probabilities=recorder.members(self._about.size),
            )

    def _generate(
        self, requests: Sequence[Request], prompts: Sequence[NDArray[np.int64]]
    ) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float32]], list[LawRecorder]]:
        """Choose the tokens of a batch, one position at a time, on a cache of keys and values."""
        import torch

        uniforms = [token_uniforms(r.rng_seed, self._max_new_tokens) for r in requests]
        recorders = [LawRecorder(self._rule, r.rng_seed) for r in requests]
        found: list[list[int]] = [[] for _ in requests]
        logs: list[list[float]] = [[] for _ in requests]
        model, ends, alive = self.load(), set(self._about.ends), np.ones(len(requests), bool)
        ids, mask = (torch.from_numpy(a).to(self._device) for a in _padded(prompts, left=True))
        name = cache_name(model)
        past: Any = None
        with torch.inference_mode():
            for t in range(self._max_new_tokens):
                position = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                out = model(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=True, **{name: past})
                past, laws = getattr(out, name, None), _log_laws(out.logits[:, -1])
                if not keeps_keys(past):
                    kind = type(model).__name__
                    raise DistdataError(f"{self._path}: {kind} keeps no cache of keys and values, as is needed here.")
                chosen = np.zeros(len(requests), np.int64)
                for b in np.flatnonzero(alive):
                    recorders[b].add(laws[b : b + 1])
                    chosen[b] = choose_token(self._choice(laws[b]), uniforms[b][t])
                    found[b].append(int(chosen[b]))
                    logs[b].append(float(laws[b, chosen[b]]))
                    alive[b] = chosen[b] not in ends
                if not alive.any():
                    break
                ids = torch.from_numpy(chosen[:, None]).to(self._device)
                mask = torch.cat([mask, torch.ones_like(ids)], 1)
        return [np.array(f, np.int64) for f in found], [np.array(x, np.float32) for x in logs], recorders

    def _choice(self, log_law: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the law that tokens are chosen by, not normalised: tempered, then cut to its nucleus."""
        law = np.exp((log_law - log_law.max()) / self._temperature)
        if self._top_p < 1.0:
            order = np.argsort(-law, kind="stable")
            before = np.cumsum(law[order]) - law[order]
            law[order[before >= self._top_p * law.sum()]] = 0.0
        return np.asarray(law)

    def _laws(
        self, prompts: Sequence[NDArray[np.int64]], completions: Sequence[NDArray[np.int64]]
    ) -> list[NDArray[np.float64]]:
        """Return the model's log-laws at every token of completions, float64 [T, V] each, in one pass."""
        import torch

        rows = [np.concatenate([p, c]) for p, c in zip(prompts, completions, strict=True)]
        if not rows:
            return []
        ids, mask = _padded(rows, left=False)
        with torch.inference_mode():
            logits = self.load()(
                input_ids=torch.from_numpy(ids).to(self._device), attention_mask=torch.from_numpy(mask).to(self._device)
            ).logits
            return [
                _log_laws(logits[b, len(p) - 1 : len(p) + len(c) - 1])
                for b, (p, c) in enumerate(zip(prompts, completions, strict=True))
            ]

    def _prompt(self, request: Request) -> NDArray[np.int64]:
        given = request.params.get("prompt_ids")
        if given is None:
            given = self._tokenized(request.params.get("prompt"))
        size, limit = self._about.size, self._about.limit
        if not isinstance(given, Sequence) or not given or not all(type(i) is int and 0 <= i < size for i in given):
            raise ValueError(f"the prompt's ids are {given!r}; they must be one or more from 0 to {size - 1}")
        if limit is not None and len(given) + self._max_new_tokens > limit:
            raise ValueError(
                f"a prompt of {len(given)} tokens leaves no room for {self._max_new_tokens} more in {limit} positions"
            )
        return np.array(given, np.int64)

    def _tokenized(self, prompt: object) -> list[int]:
        tokenizer = self._about.tokenizer
        if tokenizer is None:
            raise ValueError(
                f"params['prompt_ids'] is missing, and {self._path} has no tokenizer to make them of a text"
            )
        if not isinstance(prompt, str | list) or not prompt:
            raise ValueError(f"params['prompt'] is {prompt!r}; it must be a text or a list of messages")
        templated = self._chat and tokenizer.chat_template is not None
        if isinstance(prompt, list) and not templated:
            raise ValueError("params['prompt'] is a list of messages, but there is no chat template to join them")
        if templated:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        # a chat template writes the special tokens itself
        return list(tokenizer(prompt, add_special_tokens=not templated)["input_ids"])

    def _messages(
        self, request: Request, prompt: NDArray[np.int64], completion: NDArray[np.int64]
    ) -> list[Mapping[str, str]]:
        asked = request.params.get("prompt")
        given = asked if isinstance(asked, list) else [{"role": "user", "content": asked or self._text(prompt)}]
        ended = len(completion) > 0 and int(completion[-1]) in self._about.ends
        said = completion[:-1] if ended else completion
        return [*given, {"role": "assistant", "content": self._text(said)}]

    def _text(self, ids: NDArray[np.int64]) -> str:
        tokenizer = self._about.tokenizer
        return " ".join(map(str, ids.tolist())) if tokenizer is None else str(tokenizer.decode(ids.tolist()))

    @functools.cached_property
    def _about(self) -> _About:
        """Read what is known of the model without its weights."""
        import transformers

        library: Any = transformers
        source, where = self._source()
        try:
            config = library.AutoConfig.from_pretrained(source, **where).get_text_config(decoder=True)
            tokenizer = None
            if self._folder is None or any((self._folder / n).exists() for n in _TOKENIZER_FILES):
                tokenizer = library.AutoTokenizer.from_pretrained(source, **where)
            ends = config.eos_token_id
            with contextlib.suppress(OSError):  # a model may come without that file
                found = library.GenerationConfig.from_pretrained(source, **where).eos_token_id
                ends = ends if found is None else found
        except (OSError, ValueError, KeyError, ImportError) as e:
            raise _not_loaded(self._path, e) from e
        own = () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)
        return _About(
            size=int(config.vocab_size),
            limit=getattr(config, "max_position_embeddings", None),
            ends=own if self._end_ids is None else self._end_ids,
            tokenizer=tokenizer,
        )

    def _loaded(self) -> Any:
        import torch
        import transformers

        library: Any = transformers
        dtype: Any = "auto" if self._dtype is None else getattr(torch, self._dtype, None)
        if self._dtype is not None and not isinstance(dtype, torch.dtype):
            raise DistdataError(f"{self._path}: dtype {self._dtype!r} is none of torch's (float32, bfloat16, ...).")
        source, where = self._source()
        library.utils.logging.disable_progress_bar()
        try:
            model = library.AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **where)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as e:
            raise _not_loaded(self._path, e) from e
        if (n_rows := model.get_output_embeddings().weight.shape[0]) != self._about.size:
            raise DistdataError(f"{self._path}: config.json tells {self._about.size} ids, the weights have {n_rows}.")
        return model.to(self._device).eval()

    def _source(self) -> tuple[str, dict[str, Any]]:
        """Return what `from_pretrained` is called with."""
        pinned = {"local_files_only": True} if self._folder is not None else {"revision": self._revision}
        return str(self._folder or self._path), {"trust_remote_code": self._trust, **pinned}


class _About(NamedTuple):
    """A model without its weights: ids, positions (None: no limit known), ends, tokenizer (None: it has none)."""

    size: int
    limit: int | None
    ends: tuple[int, ...]
    tokenizer: Any


def _not_loaded(path: str, error: Exception) -> DistdataError:
    return DistdataError(f"{path}: can't be loaded as a causal language model: {error}")


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")


def _padded(rows: Sequence[NDArray[np.int64]], *, left: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows as one array [B, longest], padded with zeros, and the mask of what is no padding."""
    longest = max(len(r) for r in rows)
    ids, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        part = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, part], mask[i, part] = row, 1
    return ids, mask


def _log_laws(logits: torch.Tensor) -> NDArray[np.float64]:
    """Return log-softmax over the last dimension, float64: sums of 100,000 small terms stay exact."""
    found: NDArray[np.float64] = logits.detach().cpu().double().log_softmax(-1).numpy()
    return found


def _vocabulary_size(folder: Path | None) -> int | None:
    """Return the number of ids that a saved model's config tells, None where it lies elsewhere."""
    if folder is None:
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    return int(size) if isinstance(size, int) else None


def _versions() -> dict[str, str]:
    try:
        return {name: importlib.metadata.version(name) for name in ("transformers", "torch", "numpy")}
    except importlib.metadata.PackageNotFoundError as e:
        raise DistdataError(f"{WHAT}: {e.name} is not installed. Run `pip install {e.name}`.") from None


def _source_hash(labeller: Labeller) -> str:
    file = getattr(sys.modules.get(labeller.__module__), "__file__", None)
    return bytes_hash([Path(file).read_bytes()]) if file else labeller.__qualname__


def _check_number(name: str, value: object, low: float, high: float | None) -> None:
    good = type(value) in (int, float) and value > low and (high is None or value <= high)  # type: ignore[operator]
    if not good:
        most = "" if high is None else f" and at most {high:g}"
        raise DistdataError(f"{WHAT}: {name} is {value!r}; it must be a number above {low:g}{most}.")
