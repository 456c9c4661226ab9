import hashlib
import json

import pytest
from wan_host_my_plugin.about import describe

from wan_host import JobCancelled
from wan_host.testing.samples import sample_context, sample_media


def test_the_file_tells_what_the_asset_is(tmp_path):
    media = sample_media(tmp_path, width=96, height=64, frames=9)
    file = describe(media, sample_context(tmp_path))
    about = json.loads(file.path.read_text())
    assert (about["width"], about["height"], about["frames"], about["format"]) == (96, 64, 9, "mp4")
    assert about["sha256"] == hashlib.sha256(media.path.read_bytes()).hexdigest()
    assert (file.role, file.path.name) == ("about", "0.about.json")


def test_a_cancelled_job_gets_no_file(tmp_path):
    media, context = sample_media(tmp_path), sample_context(tmp_path)
    context.cancel()
    with pytest.raises(JobCancelled):
        describe(media, context)
    assert not (tmp_path / "0.about.json").exists()
