"""The diffusers teacher: any diffusers pipeline, by folder or hub id.

A pipeline whose inputs or records are its own (a driving world instead of pictures) may offer methods:

- ``distdata_inputs(requests) -> dict``: the arguments of the call that answers these requests;
- ``distdata_members(output, requests) -> list[(members, outcome or None)]``: their records, in order;
- ``distdata_check(request) -> str | None``: why a request can't be answered, when it can't.

A student's latents can be decoded and labelled by the same pipeline when it also offers

- ``distdata_conditions(requests) -> float32 [B, C]`` and ``distdata_noise(requests) -> float32 [B, *latent]``;
- ``distdata_decode(requests, latents) -> output``: what its call would have returned, had it ended at these latents.

Without them the seed's params feed the call by name and the output's pictures become ``image.npy``.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...catalogs.errors import DistdataError
from ...catalogs.hashing import bytes_hash, content_hash
from ...catalogs.protocol import Draw, Failure, Member, MemberSpec, Request, TeacherInfo
from .chain_states import known_warnings, record_states, state_members
from .model_source import check_commit, folder_hash

_KINDS = ("kd_pair", "ode", "rollout")
_PICTURES = {"images": "image.npy", "frames": "frames.npy"}


class DiffusersTeacher:
    """Sample a diffusers pipeline, one torch.Generator per request.

    Options:
        path: a folder written by `save_pretrained`, or a hub id ``org/name``.
        revision: the commit of a hub id, 40 hex digits. A branch or tag could move between plan and
            generation, and the same request would silently meet another teacher; it is refused.
        pipeline_class: import path ``pkg.module:Class`` of a pipeline class of your own.
        trust_remote_code: run code that lies in the folder or repository.
        record_kind: ``kd_pair`` (noise, latent, picture), ``ode`` (also every state), or ``rollout``
            (what the pipeline's own `distdata_members` gives).
        steps, guidance: ``num_inference_steps`` and ``guidance_scale`` of the call; None leaves its default.
        inputs: call argument -> key of the seed's params, for conditions given per request. Default:
            ``{"prompt": prompt_key}`` where the pipeline takes a prompt.
        call: further fixed arguments of the call.
        members, outcomes: what `describe` promises of every draw (name -> {dtype, shape}; -1: any size).
        device, dtype: where and in what precision it runs; only the CPU promises equal bytes.

    Capture ``trajectory`` adds ``noise.npy``, ``latent.npy``, ``traj.npy``, ``traj_t.npy`` to any record, and
    ``traj_sigma.npy`` (noise levels) where states are data plus noise of that level.
    """

    def __init__(
        self,
        *,
        path: str,
        revision: str | None = None,
        pipeline_class: str | None = None,
        trust_remote_code: bool = False,
        record_kind: str = "kd_pair",
        steps: int | None = None,
        guidance: float | None = None,
        prompt_key: str = "prompt",
        inputs: Mapping[str, str] | None = None,
        call: Mapping[str, Any] | None = None,
        members: Mapping[str, Any] | None = None,
        outcomes: Sequence[str] = (),
        usd_per_gpuh: float = 2.0,
        device: str = "cpu",
        dtype: str | None = None,
        id: str | None = None,
        version: str = "1",
    ) -> None:
        if record_kind not in _KINDS:
            raise DistdataError(f"diffusers teacher: record_kind is {record_kind!r}; it can be {', '.join(_KINDS)}.")
        self._folder = Path(path).expanduser() if Path(path).expanduser().is_dir() else None
        if self._folder is None:
            check_commit("diffusers teacher", path, revision)
        elif not (self._folder / "model_index.json").is_file():
            raise DistdataError(
                f"{path}: no model_index.json, so no diffusers pipeline. Save one with save_pretrained."
            )
        self._path, self._revision, self._class_path = path, revision, pipeline_class
        self._trust, self._kind = trust_remote_code, record_kind
        self._steps, self._guidance, self._prompt_key = steps, guidance, prompt_key
        self._given_inputs = dict(inputs) if inputs is not None else None
        self._call = dict(call or {})
        self._members = {name: _member_spec(name, spec) for name, spec in (members or {}).items()}
        self._outcomes, self._usd_per_gpuh = tuple(outcomes), usd_per_gpuh
        self._device, self._dtype = device, dtype
        self._id, self._version = id or Path(path).name, version
        self._pipeline: Any = None

    @functools.cached_property
    def _content_hash(self) -> str:
        return content_hash(
            {
                "source": folder_hash(self._folder) if self._folder else [self._path, self._revision],
                "class": _class_hash(self._class_path) if self._class_path else None,
                "call": [self._steps, self._guidance, self._prompt_key, self._given_inputs, self._call],
                "record": [self._kind, self._device, self._dtype],
                "versions": library_versions(),
            }
        )

    def describe(self) -> TeacherInfo:
        """Say who this is; hashes every file of the folder once (about 1 GB/s), loads nothing."""
        return TeacherInfo(
            id=self._id,
            version=self._version,
            content_hash=self._content_hash,
            kind=self._kind,
            usd_per_gpuh=self._usd_per_gpuh,
            reproducible="exact" if self._device == "cpu" else "tolerance",
            joint_batches=True,
            members=self._members,
            outcomes=self._outcomes,
        )

    def load(self) -> Any:
        """Load the pipeline on first use and return it.

        Raises:
            DistdataError: it can't be loaded, or an option names an argument that its call doesn't take.
        """
        if self._pipeline is None:
            self._pipeline = self._loaded()
            self._check_call(self._pipeline)
        return self._pipeline

    def sample(self, requests: Sequence[Request]) -> Iterable[Draw | Failure]:
        """Answer one micro-batch in one call of the pipeline; if that fails, request by request."""
        pipeline = self.load()
        good: list[Request] = []
        for request in requests:
            reason = self._refusal(pipeline, request)
            if reason is None:
                good.append(request)
            else:
                yield Failure(seed_id=request.seed_id, k=request.k, kind="invalid", reason=reason)
        yield from self._answers(pipeline, good)

    def conditions(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        """Return what a network is told of each request, float32 [B, C].

        Raises:
            DistdataError: the pipeline has no such hook (see the module's text).
            ValueError: a request is none of its world.
        """
        told: NDArray[np.float32] = self._hook("distdata_conditions")(requests)
        return told

    def noise(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        """Return the noise that each request starts from, float32 [B, *latent]; raises as `conditions` does."""
        start: NDArray[np.float32] = self._hook("distdata_noise")(requests)
        return start

    def decode(self, requests: Sequence[Request], latents: NDArray[np.float32]) -> Iterator[Draw | Failure]:
        """Turn finished latents, [B, *latent], into draws by the code that makes this teacher's own records.

        A request that is none of its world, or a latent with a NaN or infinity, is a Failure of its own.
        """
        decode, pipeline = self._hook("distdata_decode"), self.load()
        if len(latents) != len(requests):
            raise ValueError(f"{len(latents)} latents for {len(requests)} requests")
        good: list[int] = []
        for i, request in enumerate(requests):
            n_bad = int((~np.isfinite(latents[i])).sum())
            reason = f"{n_bad} of {latents[i].size} values of the latent are not finite" if n_bad else None
            reason = self._refusal(pipeline, request) or reason
            if reason is None:
                good.append(i)
            else:
                yield Failure(seed_id=request.seed_id, k=request.k, kind="invalid", reason=reason)
        if not good:
            return
        kept = [requests[i] for i in good]
        found = pipeline.distdata_members(decode(kept, latents[good]), kept)
        for request, (members, outcome) in zip(kept, found, strict=True):
            yield Draw(seed_id=request.seed_id, k=request.k, members=members, outcome=outcome)

    def _hook(self, name: str) -> Any:
        pipeline = self.load()
        if not hasattr(pipeline, name) or not hasattr(pipeline, "distdata_members"):
            raise DistdataError(
                f"{self._path}: this teacher can't decode a student's latents: {type(pipeline).__name__} has no "
                f"{name}. Give its class distdata_conditions, distdata_noise, distdata_decode and distdata_members."
            )
        return getattr(pipeline, name)

    def _answers(self, pipeline: Any, requests: Sequence[Request]) -> Iterator[Draw | Failure]:
        if not requests:
            return
        try:
            draws = self._draws(pipeline, requests)
        except DistdataError:
            raise
        except Exception as e:
            if len(requests) > 1:
                for request in requests:  # one bad condition must not take its siblings down
                    yield from self._answers(pipeline, [request])
                return
            yield Failure(seed_id=requests[0].seed_id, k=requests[0].k, kind="error", reason=f"{type(e).__name__}: {e}")
            return
        yield from draws

    def _draws(self, pipeline: Any, requests: Sequence[Request]) -> list[Draw]:
        import torch

        wanted = [self._kind in ("kd_pair", "ode") or "trajectory" in r.capture for r in requests]
        arguments = self._arguments(pipeline, requests)
        # always on the CPU: the same noise on every device
        arguments["generator"] = [torch.Generator().manual_seed(r.rng_seed) for r in requests]
        recorder = record_states(pipeline.scheduler) if any(wanted) else contextlib.nullcontext(None)
        with known_warnings(), torch.inference_mode(), recorder as states:
            output = pipeline(**arguments)
        if hasattr(pipeline, "distdata_members"):
            found = pipeline.distdata_members(output, requests)
        else:
            found = [(m, None) for m in self._pictures(output, requests)]
        if states is not None:
            for i, (members, _) in enumerate(found):
                if wanted[i]:
                    full = self._kind == "ode" or "trajectory" in requests[i].capture
                    members.update(state_members(states, pipeline.scheduler, i, full))
        return [
            Draw(seed_id=r.seed_id, k=r.k, members=members, outcome=outcome)
            for r, (members, outcome) in zip(requests, found, strict=True)
        ]

    def _arguments(self, pipeline: Any, requests: Sequence[Request]) -> dict[str, Any]:
        arguments = dict(self._call)
        if self._steps is not None:
            arguments["num_inference_steps"] = self._steps
        if self._guidance is not None:
            arguments["guidance_scale"] = self._guidance
        if hasattr(pipeline, "distdata_inputs"):
            arguments.update(pipeline.distdata_inputs(requests))
            return arguments
        inputs = self._inputs(pipeline)
        for argument, key in inputs.items():
            arguments[argument] = [r.params[key] for r in requests]
        taken = _call_parameters(pipeline)
        if not inputs and "batch_size" in taken:
            arguments["batch_size"] = len(requests)
        if "output_type" in taken:
            arguments.setdefault("output_type", "np")
        return arguments

    def _inputs(self, pipeline: Any) -> dict[str, str]:
        if self._given_inputs is not None:
            return self._given_inputs
        return {"prompt": self._prompt_key} if "prompt" in _call_parameters(pipeline) else {}

    def _refusal(self, pipeline: Any, request: Request) -> str | None:
        if hasattr(pipeline, "distdata_check"):
            reason: str | None = pipeline.distdata_check(request)
            return reason
        if hasattr(pipeline, "distdata_inputs"):
            return None
        missing = [key for key in self._inputs(pipeline).values() if key not in request.params]
        return f"the seed's params lack {', '.join(map(repr, missing))}" if missing else None

    def _pictures(self, output: Any, requests: Sequence[Request]) -> list[dict[str, Member]]:
        shown = [(getattr(output, a), name) for a, name in _PICTURES.items() if getattr(output, a, None) is not None]
        if not shown:
            raise DistdataError(
                f"{self._path}: the pipeline returned {type(output).__name__} without images or frames. "
                "Give its class a method distdata_members(output, requests) that turns it into records."
            )
        pictures, name = shown[0]
        inputs = self._inputs(self._pipeline)
        found: list[dict[str, Member]] = []
        for picture, request in zip(pictures, requests, strict=True):
            given = {argument: request.params[key] for argument, key in inputs.items()}
            members: dict[str, Member] = {name: _to_uint8(picture)}
            numbers = [v for v in given.values() if not isinstance(v, str)]
            if numbers:
                members["cond.npy"] = np.asarray(numbers).reshape(-1)
            if isinstance(given.get("prompt"), str):
                members["prompt.txt"] = given["prompt"]
            members["meta.json"] = {
                "teacher": self._id,
                "scenario": request.scenario,
                "axes": dict(request.axes),
                "inputs": given,
            }
            found.append(members)
        return found

    def _loaded(self) -> Any:
        import torch
        from diffusers import DiffusionPipeline
        from diffusers.utils import is_accelerate_available, logging

        logging.disable_progress_bar()
        options: dict[str, Any] = {"low_cpu_mem_usage": is_accelerate_available()}
        if self._dtype is not None:
            options["torch_dtype"] = getattr(torch, self._dtype, None)
            if not isinstance(options["torch_dtype"], torch.dtype):
                raise DistdataError(f"{self._path}: dtype {self._dtype!r} is none of torch's (float32, bfloat16, ...).")
        if self._folder is not None:
            options["local_files_only"] = True
        else:
            options["revision"] = self._revision
        cls: Any = DiffusionPipeline if self._class_path is None else import_class(self._class_path)
        try:
            with known_warnings(), _own_code(self._trust):
                if self._trust:
                    options["trust_remote_code"] = True
                    if (
                        self._folder is not None
                        and self._class_path is None
                        and (self._folder / "pipeline.py").exists()
                    ):
                        options["custom_pipeline"] = str(self._folder)
                pipeline = cls.from_pretrained(str(self._folder or self._path), **options)
        except (OSError, ValueError, AttributeError, ImportError) as e:
            raise DistdataError(
                f"{self._path}: can't be loaded as a diffusers pipeline: {e} If the class is your own, name it with "
                "pipeline_class = 'pkg.module:Class'; if its code lies in the folder, set trust_remote_code = true."
            ) from e
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self._device)

    def _check_call(self, pipeline: Any) -> None:
        taken = _call_parameters(pipeline)
        own = hasattr(pipeline, "distdata_inputs")
        asked = {**self._call, **({} if own else self._inputs(pipeline))}
        if self._steps is not None:
            asked["num_inference_steps"] = self._steps
        if self._guidance is not None:
            asked["guidance_scale"] = self._guidance
        unknown = [name for name in asked if name not in taken]
        if unknown:
            raise DistdataError(
                f"{self._path}: {type(pipeline).__name__} takes no {', '.join(unknown)}. "
                f"Its call takes: {', '.join(sorted(taken))}."
            )


def _to_uint8(picture: Any) -> Any:
    values = np.asarray(picture)
    if values.dtype == np.uint8:
        return values
    return (np.clip(values, 0, 1) * 255).round().astype(np.uint8)


def import_class(path: str) -> Any:
    """Import ``pkg.module:Class``.

    Raises:
        DistdataError: no colon, no such module, or nothing of that name in it.
    """
    module_name, colon, name = path.partition(":")
    if not colon or not name:
        raise DistdataError(f"pipeline_class {path!r}: write it as 'pkg.module:Class'.")
    try:
        module = importlib.import_module(module_name)
    except ImportError as e:
        raise DistdataError(f"pipeline_class {path!r}: {e}. Is its folder installed or on PYTHONPATH?") from e
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise DistdataError(f"pipeline_class {path!r}: module {module_name} has no class {name!r}.")
    return found


@contextlib.contextmanager
def _own_code(trusted: bool) -> Iterator[None]:
    """Let one process at a time load a folder's code: diffusers copies it to one shared place before importing it."""
    if not trusted:
        yield
        return
    with open(Path(tempfile.gettempdir()) / f"distdata-diffusers-{_user()}.lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _user() -> str:
    return content_hash(str(Path.home()))


def _call_parameters(pipeline: Any) -> set[str]:
    return set(inspect.signature(type(pipeline).__call__).parameters) - {"self"}


def _member_spec(name: str, spec: Any) -> MemberSpec:
    if isinstance(spec, MemberSpec):
        return spec
    try:
        shape = tuple(None if int(d) < 0 else int(d) for d in spec["shape"])
        return MemberSpec(dtype=np.dtype(spec["dtype"]).name, shape=shape, allow_nan=bool(spec.get("allow_nan", False)))
    except (KeyError, TypeError, ValueError) as e:
        raise DistdataError(
            f"diffusers teacher: members[{name!r}] = {spec!r}: write {{ dtype = 'uint8', shape = [64, 64, 3] }} ({e})."
        ) from e


def _class_hash(path: str) -> list[str]:
    """Return the class's name and a hash of its module's file, without importing it."""
    try:
        found = importlib.util.find_spec(path.partition(":")[0])
    except (ImportError, ValueError):
        found = None
    if found is None or found.origin is None:
        raise DistdataError(f"pipeline_class {path!r}: no such module. Is its folder installed or on PYTHONPATH?")
    return [path, bytes_hash([Path(found.origin).read_bytes()])]


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries whose arithmetic decides a sample's bits."""
    return {name: importlib.metadata.version(name) for name in ("diffusers", "torch", "numpy")}
