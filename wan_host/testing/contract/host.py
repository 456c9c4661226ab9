"""What holds for the hooks of the host process: files, references, reports, and the life of a worker."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path

import pytest

from wan_host.errors import JobCancelled, ReferenceRejected
from wan_host.hooks import Hooks
from wan_host.hookspecs import WorkerInfo
from wan_host.media import DerivedFile, Media
from wan_host.model import MediaKind
from wan_host.testing.contract.base import AT_ONCE, Contract, at_once
from wan_host.testing.samples import sample_context, sample_file, sample_media, sample_report

_WORKER = WorkerInfo(worker_id="worker-1", version="0.1.0", host="127.0.0.1", port=7860, url="", devices=("cpu",))
_HOOK_SECONDS = 30.0


class PostprocessContract(Contract):
    """``postprocess``: files derived from real assets, one of a video and one of an image."""

    @pytest.fixture
    def alone(self, hooks: Hooks) -> Hooks:
        """Return the hooks without those of other plugins that derive files."""
        for record in hooks.registry.records:
            if record.name != self.plugin:
                hooks.registry.disable(record)
        return hooks

    @pytest.fixture(params=["video", "image"])
    def media(self, request: pytest.FixtureRequest, tmp_path: Path) -> Media:
        """Return an asset."""
        kind: MediaKind = request.param
        return sample_media(tmp_path, kind=kind)

    def test_its_files_are_whole_and_in_the_jobs_folder(self, alone: Hooks, media: Media, tmp_path: Path) -> None:
        """The host publishes them after the hook has returned, and removes the folder after that."""
        before = media.path.read_bytes()
        files = alone.postprocess(media, sample_context(tmp_path))
        for file in files:
            assert file.path.resolve().is_relative_to(tmp_path.resolve()), f"{file.path} is not in context.workdir"
            assert file.path.stat().st_size > 0, f"{file.path.name} is empty"
            assert "/" in file.content_type, f"{file.content_type!r} is no content type"
        assert media.path.read_bytes() == before, "it changed the asset"

    def test_a_job_taken_up_again_has_no_frames_any_more_and_gets_the_same_files(
        self, alone: Hooks, media: Media, tmp_path: Path
    ) -> None:
        """``media.clip`` is None where the host has only the file."""
        with_frames = _read(alone.postprocess(media, sample_context(tmp_path)))
        without = _read(alone.postprocess(dataclasses.replace(media, clip=None), sample_context(tmp_path)))
        assert without.keys() == with_frames.keys()
        assert all(without.values())

    def test_several_jobs_at_once_do_not_disturb_each_other(self, alone: Hooks, tmp_path: Path) -> None:
        """Hooks of the host process run in threads."""

        def one(number: int) -> dict[str, bytes]:
            folder = tmp_path / str(number)
            folder.mkdir()
            return _read(alone.postprocess(sample_media(folder), sample_context(folder)))

        first, *others = at_once(one)
        assert all(other == first for other in others)

    def test_a_cancelled_job_ends_as_cancelled_or_not_at_all(self, alone: Hooks, media: Media, tmp_path: Path) -> None:
        """What ``context.check`` raises passes through."""
        context = sample_context(tmp_path)
        context.cancel()
        with contextlib.suppress(JobCancelled):
            alone.postprocess(media, context)


class PublisherContract(Contract):
    """``publish``. Override ``published`` to say what stands under a url now."""

    def published(self, url: str) -> bytes:
        """Return what the store has under the url that ``publish`` returned."""
        self.missing(f"override published(url) to read back what is at {url!r}")

    def _publish(self, hooks: Hooks, folder: Path, data: bytes, **names: str) -> str:
        folder.mkdir(exist_ok=True)
        file = sample_file(folder, data, **names)
        published = hooks.publish(self.plugin, file, sample_context(folder))
        assert published.file_size_bytes == len(data), "the size is not what was sent; the host would not believe it"
        assert published.url
        return published.url

    def test_a_file_is_where_it_says_and_has_its_size(self, hooks: Hooks, tmp_path: Path) -> None:
        """A large file and a small one."""
        for data in (b"x", bytes(range(256)) * 4096):
            self._publish(hooks, tmp_path, data)

    def test_publishing_again_replaces_what_is_there(self, hooks: Hooks, tmp_path: Path) -> None:
        """Every attempt of a job publishes under the same keys, with whatever is shorter or longer."""
        urls = {self._publish(hooks, tmp_path, data) for data in (b"a long first file", b"short", b"short")}
        assert len(urls) == 1, "the same key has several urls"

    def test_files_of_other_names_jobs_and_users_are_other_files(self, hooks: Hooks, tmp_path: Path) -> None:
        """The key is the whole address."""
        names = [
            {"name": "0.mp4"},
            {"name": "0.thumb.webp"},
            {"name": "1.png"},
            {"job_id": "other"},
            {"user_id": "other"},
            {"user_id": "a.b_c-D", "job_id": "0"},
        ]
        urls = [self._publish(hooks, tmp_path, b"data", **given) for given in names]
        assert len(set(urls)) == len(urls)

    def test_what_was_published_can_be_read(self, hooks: Hooks, tmp_path: Path) -> None:
        """Byte for byte, and the last of several that replaced each other."""
        for data in (b"first", bytes(range(256)) * 4096, b"last"):
            assert self.published(self._publish(hooks, tmp_path, data)) == data

    def test_several_files_at_once_do_not_disturb_each_other(self, hooks: Hooks, tmp_path: Path) -> None:
        """Files of several jobs are published in threads at the same time."""
        data = [bytes([number]) * (1000 + number) for number in range(AT_ONCE)]
        urls = at_once(lambda number: self._publish(hooks, tmp_path / str(number), data[number], job_id=f"job-{number}"))
        assert len(set(urls)) == AT_ONCE


class ReferenceContract(Contract):
    """``fetch_reference``. Override ``reference``."""

    @pytest.fixture
    def reference(self) -> tuple[str, bytes]:
        """Return the uri of a reference that belongs to the user ``user``, and its bytes."""
        self.missing("override reference: the uri of something that the user 'user' may read, and its bytes")

    def test_it_fetches_what_its_owner_asks_for(self, hooks: Hooks, reference: tuple[str, bytes], tmp_path: Path) -> None:
        """The bytes, as they are stored."""
        uri, data = reference
        assert hooks.fetch_reference(uri, sample_context(tmp_path)) == data

    def test_nobody_else_gets_it(self, hooks: Hooks, reference: tuple[str, bytes], tmp_path: Path) -> None:
        """Jobs of others name it in vain: the payload is theirs, the store's key is the worker's."""
        try:
            given = hooks.fetch_reference(reference[0], sample_context(tmp_path, user_id="somebody-else"))
        except ReferenceRejected:
            return
        assert given is None, "another user was given the reference"

    def test_it_claims_nothing_that_is_not_its_own(self, hooks: Hooks, tmp_path: Path) -> None:
        """Other plugins are asked then."""
        assert hooks.fetch_reference("no-such-scheme:/nowhere/1.png", sample_context(tmp_path)) is None


class ReportContract(Contract):
    """``deliver_report``. Override ``receiver_answers`` to make the receiver behind the plugin answer with a status."""

    def receiver_answers(self, status: int) -> None:
        """Make the receiver answer its next request, and only that, with ``status``."""
        self.missing(f"override receiver_answers to make the receiver answer {status}")

    def test_it_delivers_or_says_that_it_is_not_configured(self, hooks: Hooks, tmp_path: Path) -> None:
        """Every kind of report, each within its deadline."""
        for status in ("processing", "completed", "failed"):
            begun = time.monotonic()
            answer = hooks.deliver_report(self.plugin, sample_report(status=status), sample_context(tmp_path))
            assert time.monotonic() - begun < _HOOK_SECONDS
            if answer is None:
                self.missing("it is not configured: deliver_report returned None")
            assert answer.outcome == "accepted", answer.note

    def test_a_report_that_was_lost_on_the_way_back_can_be_sent_again(self, hooks: Hooks, tmp_path: Path) -> None:
        """The host repeats what it is not sure of; receivers know it by the idempotency key."""
        report = sample_report()
        answers = [hooks.deliver_report(self.plugin, report, sample_context(tmp_path)) for _ in range(2)]
        assert len({answer.outcome if answer else None for answer in answers}) == 1

    @pytest.mark.parametrize(("status", "outcome"), [(200, "accepted"), (400, "refused"), (503, "retry"), (429, "retry")])
    def test_the_receivers_answer_decides(self, hooks: Hooks, tmp_path: Path, status: int, outcome: str) -> None:
        """408, 425, 429 and 5xx may pass; any other 4xx is for good."""
        self.receiver_answers(status)
        answer = hooks.deliver_report(self.plugin, sample_report(status="failed"), sample_context(tmp_path))
        assert answer is not None
        assert answer.outcome == outcome, answer.note


class WorkerContract(Contract):
    """``worker_started`` and ``worker_stopping``: in this order, once each, and never in the worker's way."""

    def test_a_worker_starts_and_stops(self, hooks: Hooks) -> None:
        """Also one that stops before it was ever ready."""
        begun = time.monotonic()
        for calls in ((hooks.worker_started, hooks.worker_stopping), (hooks.worker_stopping,)):
            for call in calls:
                if call.__name__ in _hooks_of(hooks, self.plugin):
                    call(self.plugin, _WORKER)
        assert time.monotonic() - begun < _HOOK_SECONDS, "the worker waits for these hooks"


def _hooks_of(hooks: Hooks, plugin: str) -> tuple[str, ...]:
    return next(record.hooks for record in hooks.registry.records if record.name == plugin)


def _read(files: list[DerivedFile]) -> dict[str, bytes]:
    return {file.role: file.path.read_bytes() for file in files}
