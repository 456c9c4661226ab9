import pytest
from wan_host_my_plugin.folder import store
from wan_host_my_plugin.settings import Settings

from wan_host import JobCancelled, PublishFailed, PublishRefused
from wan_host.testing.samples import sample_context, sample_file


def test_the_address_comes_before_the_key(tmp_path):
    settings = Settings(folder=tmp_path / "store", url="https://example.org/videos/")
    published = store(sample_file(tmp_path, b"data"), sample_context(tmp_path), settings)
    assert published.url == "https://example.org/videos/user/job/0.mp4"


def test_without_a_folder_publishing_is_refused_for_good(tmp_path):
    with pytest.raises(PublishRefused, match="WAN_HOST_MY_PLUGIN_FOLDER: it is not set"):
        store(sample_file(tmp_path, b"data"), sample_context(tmp_path), Settings())


def test_what_may_work_later_is_tried_again(tmp_path):
    (tmp_path / "store").write_text("a file is in the way")
    with pytest.raises(PublishFailed):
        store(sample_file(tmp_path, b"data"), sample_context(tmp_path), Settings(folder=tmp_path / "store"))


def test_a_cancelled_job_leaves_nothing_behind(tmp_path):
    context = sample_context(tmp_path)
    context.cancel()
    with pytest.raises(JobCancelled):
        store(sample_file(tmp_path, b"data"), context, Settings(folder=tmp_path / "store"))
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
