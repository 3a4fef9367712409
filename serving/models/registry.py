"""The registry of models, by name and version: loads, replaces and unloads them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Executor
from dataclasses import replace

from serving.errors import InvalidModel, ModelNotFound, NotReady, SegserveError
from serving.models.index import ModelState, build_index
from serving.models.loader import ModelLoader, OpenEngine, keep_available_outputs
from serving.models.model import Model, ModelEntry
from serving.models.repository import ModelFolder
from serving.models.sources import LocalRepository, ModelSource
from serving.observability.metrics import UNKNOWN_MODEL, Metrics
from serving.settings import Settings

log = logging.getLogger("segserve")


class Registry:
    """The models of one source; one that fails to load does not stop the others.

    ``source`` is the folder ``settings.repository`` unless another is given.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        open_engine: OpenEngine,
        source: ModelSource | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.loader = ModelLoader(settings, metrics, open_engine)
        self.source = LocalRepository(settings) if source is None else source
        self.ready = False
        self._entries: dict[str, ModelEntry] = {}
        self._change = asyncio.Lock()

    @property
    def failures(self) -> dict[str, str]:
        """Returns why models could not be loaded, by name."""
        return {name: entry.failure for name, entry in self._entries.items() if entry.failure}

    async def load_all(self, pool: Executor) -> None:
        """Loads and warms all models; ``failures`` names those that cannot be.

        Raises:
            InvalidModel: no repository, or with ``strict`` the first model that fails.
            NotReady: the source does not answer.
        """
        loop = asyncio.get_running_loop()
        for name in await loop.run_in_executor(pool, self.source.names):
            try:
                await self._load(name, pool)
            except SegserveError as error:
                if self.settings.strict:
                    raise
                self._entry(name).failure = str(error)
                log.error("model %s is not served: %s", name, error)
        if not self._names():
            raise InvalidModel(
                f"no model of {self.source.title} can be served"
                + "".join(f"; {name}: {why}" for name, why in self.failures.items())
            )
        self._log_hidden_families()
        self.ready = True

    def _entry(self, name: str) -> ModelEntry:
        return self._entries.setdefault(name, ModelEntry())

    def _names(self) -> list[str]:
        """Returns the names of the models that answer, sorted."""
        return sorted(name for name, entry in self._entries.items() if entry.versions)

    def _log_hidden_families(self) -> None:
        for name in self._names():
            others = [model.name for model in self.members(name) if model.name != name]
            if others:
                log.info(
                    "family %s (with %s) cannot be asked for: %s is a model; see docs/geometry.md",
                    name, ", ".join(others), name,
                )  # fmt: skip

    async def _load(self, name: str, pool: Executor) -> None:
        """Loads all versions; they take requests together, or none does."""
        start = time.perf_counter()
        folder = await self._read(name, pool)
        served = self._entry(name).newest
        versions: dict[int, Model] = {}
        try:
            for version in folder.versions:
                versions[version] = await self.loader.load(folder, version, pool, served)
                served = served or versions[version]
        except BaseException:
            await asyncio.gather(*(model.batcher.drain() for model in versions.values()))
            raise
        self._serve(name, versions)
        self._log_loaded(name, time.perf_counter() - start)

    async def _read(self, name: str, pool: Executor) -> ModelFolder:
        """Reads the model's folder.

        Raises:
            SegserveError: whatever is wrong with it; the others are not affected.
        """
        loop = asyncio.get_running_loop()
        try:
            folder = await loop.run_in_executor(pool, self.source.read, name)
        except SegserveError:
            raise
        except Exception as error:
            raise InvalidModel(f"{name}: {type(error).__name__}: {error}") from error
        for why in folder.ignored.values():
            log.warning("model %s: %s", name, why)
        return folder

    def _serve(self, name: str, versions: dict[int, Model]) -> None:
        for model in versions.values():
            for label in {name, model.folder.family}:
                self.metrics.create_series(label)
            self.metrics.model_info.labels(
                model.name, str(model.version), model.engine.name, model.spec.precision
            ).set(1)
        # Whatever else was known of it is out of date, but for a change that is going on.
        self._entries[name] = ModelEntry(versions, changing=self._entry(name).changing)

    def _log_loaded(self, name: str, seconds: float) -> None:
        self.metrics.model_load_seconds.labels(name).set(seconds)
        versions = sorted(self._entries[name].versions)
        log.info("model %s: versions %s warm after %.1f s", name, versions, seconds)

    def get(self, name: str, version: int | None = None) -> Model:
        """Returns the model, of its highest served version unless one is named.

        Raises:
            ModelNotFound: the message lists what is loaded, or says why the model is not.
            NotReady: models are still being loaded.
        """
        entry = self._entries.get(name, ModelEntry())
        newest = entry.newest
        if newest is None:
            if entry.failure:
                raise ModelNotFound(f"model {name!r} could not be loaded: {entry.failure}")
            if not self.ready:
                raise NotReady("models are still being loaded; ask /v2/health/ready")
            members = ", ".join(model.name for model in self.members(name))
            if members:
                raise ModelNotFound(
                    f"{name!r} is a family, which only segment without a version takes; "
                    f"its models: {members}"
                )
            known = ", ".join(self._names())
            raise ModelNotFound(f"unknown model {name!r}; loaded: {known}")
        if version is None:
            return newest
        if version not in entry.versions:
            raise ModelNotFound(
                f"model {name!r} has no version {version}; served: {sorted(entry.versions)}"
            )
        return entry.versions[version]

    async def load(self, name: str, pool: Executor) -> None:
        """Loads a model of the repository, or reloads it: warm it, swap, drain the old one.

        Raises:
            ModelNotFound: the repository holds no such folder.
            InvalidModel: it cannot be served; what was loaded before still is.
        """
        async with self._change:
            loop = asyncio.get_running_loop()
            known = await loop.run_in_executor(pool, self.source.names)
            if name not in known:
                raise ModelNotFound(
                    f"failed to load {name!r}: {self.source.title} holds "
                    f"{', '.join(known) or 'no model'}"
                )
            before = self._entry(name).versions
            self._entry(name).changing = "LOADING"
            try:
                await self._load(name, pool)
            except SegserveError as error:
                if not before:
                    self._entry(name).failure = str(error)
                log.error("model %s is not loaded: %s", name, error)
                self.metrics.reload_failures.labels(self.label(name)).inc()
                raise
            finally:
                self._entry(name).changing = ""
            await self._retire(before)

    async def refresh(self, name: str, changed: Collection[int] | None, pool: Executor) -> None:
        """Follows a change of the model's folder: loads what is new, drops what is gone.

        A version that cannot be served replaces none: ``failures``, ``refused`` and the log name
        it, and what answered before still does.

        Args:
            changed: versions whose files changed; None: the configuration or labels did.
        """
        async with self._change:
            start = time.perf_counter()
            before = self._entry(name).versions
            refused: dict[str, str] = {}
            versions: dict[int, Model] = {}
            served = self._entry(name).newest
            try:
                folder = await self._read(name, pool)
            except SegserveError as error:
                refused[""] = str(error)
                versions = dict(before)
            else:
                for version in folder.versions:
                    try:
                        if changed is not None and version in before and version not in changed:
                            same = before[version]
                            shown = keep_available_outputs(folder, version, same.spec)
                            # Other colours or classes are other answers to the same bytes.
                            cache = self.loader.open_cache(shown)
                            versions[version] = replace(same, folder=shown, cache=cache)
                            if same.cache is not None:
                                same.cache.clear()
                            continue
                        versions[version] = await self.loader.load(folder, version, pool, served)
                        served = served or versions[version]
                    except SegserveError as error:
                        refused[str(version)] = str(error)
                    except BaseException:
                        old = {id(model.batcher) for model in before.values()}
                        new = [m.batcher for m in versions.values() if id(m.batcher) not in old]
                        await asyncio.gather(*(batcher.drain() for batcher in new))
                        raise
                if refused:
                    versions = {**before, **versions}
            for tried, why in refused.items():
                log.error("model %s version %s is not served: %s", name, tried or "*", why)
                self.metrics.reload_failures.labels(self.label(name)).inc()
            if not versions:
                self._entry(name).failure = "; ".join(refused.values())
                return
            self._serve(name, versions)
            self._entry(name).refused = refused
            kept = {id(model.batcher) for model in versions.values()}
            if not kept <= {id(model.batcher) for model in before.values()}:
                self._log_loaded(name, time.perf_counter() - start)
            await self._retire({v: m for v, m in before.items() if id(m.batcher) not in kept})

    async def unload(self, name: str) -> None:
        """Takes a model out, and waits for the requests that it still answers.

        A model that is not loaded is unloaded already: no error, as in Triton.
        """
        async with self._change:
            entry = self._entries.get(name)
            if entry is None:
                return
            versions, entry.versions = entry.versions, {}
            entry.refused, entry.failure = {}, ""
            if versions:
                entry.unloaded, entry.changing = tuple(versions), "UNLOADING"
            try:
                await self._retire(versions)
            finally:
                entry.changing = ""

    async def _retire(self, versions: Mapping[int, Model]) -> None:
        for model in versions.values():
            await model.users.wait_for_none()
            await model.batcher.drain()
            if model.cache is not None:
                model.cache.clear()
            now = self._entries[model.name].versions.get(model.version)
            facts = (model.engine.name, model.spec.precision)
            if now is None or (now.engine.name, now.spec.precision) != facts:
                self.metrics.forget_model(model.name, model.version, *facts)

    async def index(self) -> list[ModelState]:
        """Returns every model of the source by name, with the state of its versions."""
        entries = {name: replace(entry) for name, entry in self._entries.items()}
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, build_index, self.source, entries)

    @property
    def can_answer(self) -> bool:
        """Returns whether any model works; without models nothing is broken."""
        models = self.models()
        return not models or any(model.is_ready for model in models)

    def is_family(self, name: str) -> bool:
        """Returns whether ``name`` stands for several models; a model's own name never does."""
        return not self._is_model(name) and bool(self.members(name))

    def members(self, family: str) -> list[Model]:
        """Returns the models of a family, each of its highest served version, by name."""
        newest = (entry.newest for _, entry in sorted(self._entries.items()))
        return [model for model in newest if model is not None and model.folder.family == family]

    def models(self) -> list[Model]:
        """Returns all loaded versions, by name."""
        return [
            model
            for _, entry in sorted(self._entries.items())
            for _, model in sorted(entry.versions.items())
        ]

    def label(self, name: str) -> str:
        """Returns ``name`` as a metric label; names of no model would be unbounded."""
        return name if self._is_model(name) or self.is_family(name) else UNKNOWN_MODEL

    def _is_model(self, name: str) -> bool:
        return name in self._entries and bool(self._entries[name].versions)

    async def drain(self) -> None:
        """Answers what is queued, then frees all engines."""
        self.ready = False
        await self.loader.close()
        limit_s = self.settings.stop_timeout_s
        await asyncio.gather(*(model.batcher.drain(limit_s) for model in self.models()))
        for entry in self._entries.values():
            entry.versions = {}
