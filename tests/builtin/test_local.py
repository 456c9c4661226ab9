"""Publishing into a local folder."""

import errno
import os
import time
from pathlib import Path

import pluggy
import pytest

from wan_host import hookspecs
from wan_host.builtin import local
from wan_host.builtin.local import LocalPublisher
from wan_host.context import StageContext
from wan_host.errors import JobCancelled, PublishFailed, PublishRefused, SettingsError
from wan_host.media import OutputFile


def output(path, key="u1/j1/0.mp4"):
    return OutputFile(
        job_id="j1",
        user_id="u1",
        asset_index=0,
        role="asset",
        path=path,
        key=key,
        content_type="video/mp4",
        file_size_bytes=path.stat().st_size if path.exists() else 0,
    )


@pytest.fixture
def context(tmp_path):
    return StageContext(job_id="j1", user_id="u1", workdir=tmp_path, deadline=time.monotonic() + 20)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "0.mp4"
    path.write_bytes(os.urandom(3_000_000))
    return path


@pytest.fixture
def publisher(tmp_path):
    return LocalPublisher(tmp_path / "outputs", "workspace-temp")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_is_copied_to_its_key_and_the_url_begins_with_the_bucket(tmp_path, publisher, source, context):
    published = publisher.publish(output(source), context)
    assert published.url == "workspace-temp/u1/j1/0.mp4"
    assert published.file_size_bytes == 3_000_000
    assert files(tmp_path / "outputs") == ["workspace-temp/u1/j1/0.mp4"]
    assert (tmp_path / "outputs" / published.url).read_bytes() == source.read_bytes()
    source.write_bytes(b"")
    assert (tmp_path / "outputs" / published.url).stat().st_size == 3_000_000


def test_others_may_read_what_was_published_as_far_as_the_umask_says(tmp_path, publisher, source, context):
    before = os.umask(0o022)
    try:
        published = publisher.publish(output(source), context)
    finally:
        os.umask(before)
    assert (tmp_path / "outputs" / published.url).stat().st_mode & 0o777 == 0o644


def test_publishing_again_replaces_the_file_in_one_step(tmp_path, publisher, source, context):
    published = publisher.publish(output(source), context)
    with (tmp_path / "outputs" / published.url).open("rb") as reader:
        source.write_bytes(b"second")
        assert publisher.publish(output(source), context).file_size_bytes == 6
        assert len(reader.read()) == 3_000_000  # who reads already keeps the whole old file
    assert (tmp_path / "outputs" / published.url).read_bytes() == b"second"


def test_it_is_called_through_the_publish_hook(publisher, source, context):
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(publisher)
    manager.check_pending()
    assert manager.hook.publish(file=output(source), context=context).url == "workspace-temp/u1/j1/0.mp4"


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../x", "u1/../../x", "u1//x", "u1/.", "u1/x/", "u1\\x", "u1/a b", "u1/\0", "u1/...", "u1/" + "x" * 201],
)
def test_keys_that_lead_elsewhere_are_refused(tmp_path, publisher, source, context, key):
    with pytest.raises(PublishRefused, match="key: "):
        publisher.publish(output(source, key), context)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("bucket", ["", "..", "a/b", "a b"])
def test_a_bucket_must_be_a_plain_name(tmp_path, bucket):
    with pytest.raises(SettingsError, match="bucket: "):
        LocalPublisher(tmp_path, bucket)


@pytest.mark.parametrize(
    "fault",
    [
        (errno.ENOSPC, PublishFailed),
        (errno.EDQUOT, PublishFailed),
        (errno.EIO, PublishFailed),
        (errno.EACCES, PublishRefused),
        (errno.EPERM, PublishRefused),
        (errno.EROFS, PublishRefused),
    ],
)
def test_a_full_disk_may_empty_but_missing_rights_stay(publisher, source, context, monkeypatch, fault):
    number, error = fault

    def failing(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(local.os, "fsync", failing)
    with pytest.raises(error, match=os.strerror(number)):
        publisher.publish(output(source), context)
    assert files(source.parent / "outputs") == []


def test_a_file_where_a_folder_must_be_is_refused(tmp_path, publisher, source, context):
    (tmp_path / "outputs").write_bytes(b"")
    with pytest.raises(PublishRefused):
        publisher.publish(output(source), context)


def test_a_missing_source_may_come_back(publisher, context):
    with pytest.raises(PublishFailed):
        publisher.publish(output(Path("gone.mp4")), context)


def test_cancelling_leaves_nothing_half_published(tmp_path, publisher, source, context):
    context.cancel()
    with pytest.raises(JobCancelled):
        publisher.publish(output(source), context)
    assert files(tmp_path / "outputs") == []
